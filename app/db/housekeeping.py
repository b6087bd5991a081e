"""What must be done to jobs that nobody is holding: ring doorbells, free the lost."""

from datetime import timedelta

from sqlalchemy import delete, exists, or_, select, update
from sqlalchemy.orm import Session

from app.db.attempts import release
from app.db.events import append_event
from app.db.models import Job, OutboxMessage
from app.db.session import Database, now
from app.domain.job_status import OWNED, JobStatus

BATCH = 100
RETRY_SECONDS = (1, 2, 5, 10, 30)


def due_messages(session: Session) -> list[OutboxMessage]:
    """Outbox rows to send now, locked; other relays skip them."""
    query = (
        select(OutboxMessage)
        .where(OutboxMessage.not_before <= now(session))
        .order_by(OutboxMessage.id)
        .limit(BATCH)
        .with_for_update(skip_locked=True)
    )
    return list(session.scalars(query))


def mark_sent(session: Session, messages: list[OutboxMessage]) -> None:
    """Forget sent doorbells and note when their jobs were announced."""
    session.execute(delete(OutboxMessage).where(OutboxMessage.id.in_([row.id for row in messages])))
    session.execute(
        update(Job)
        .where(Job.id.in_([row.job_id for row in messages]))
        .values(announced_at=now(session))
    )


def postpone(session: Session, message: OutboxMessage) -> None:
    """Try a doorbell again later."""
    pause = RETRY_SECONDS[min(message.tries, len(RETRY_SECONDS) - 1)]
    message.tries += 1
    message.not_before = now(session) + timedelta(seconds=pause)


def free_lost_jobs(database: Database) -> int:
    """Take jobs from attempts whose lease has ended; return how many."""
    with database.write() as session:
        query = (
            select(Job)
            .where(Job.status.in_(OWNED), Job.lease_expires_at < now(session))
            .limit(BATCH)
            .with_for_update(skip_locked=True)
        )
        lost = list(session.scalars(query))
        for job in lost:
            release(session, job, "worker_lost")
        return len(lost)


def fail_overdue_jobs(database: Database) -> int:
    """End queued jobs that no worker took in the time their clients gave; return how many."""
    with database.write() as session:
        moment = now(session)
        query = (
            select(Job)
            # A job that was given back has been started in time.
            .where(Job.status == JobStatus.QUEUED, Job.attempt == 0, Job.start_before < moment)
            .limit(BATCH)
            .with_for_update(skip_locked=True)
        )
        overdue = list(session.scalars(query))
        for job in overdue:
            job.status, job.finished_at = JobStatus.FAILED, moment
            job.version += 1
            job.error = {
                "code": "deadline_exceeded_before_start",
                "message": "no worker took the job within limits.max_pending_seconds",
                "retryable": True,
            }
            session.flush()
            append_event(session, job, "status", {"status": job.status, "error": job.error})
        return len(overdue)


def ring_forgotten_jobs(database: Database, older_than_seconds: float) -> int:
    """Queue a doorbell for queued jobs without one: announced long ago, or given back."""
    with database.write() as session:
        moment = now(session)
        pending = exists().where(OutboxMessage.job_id == Job.id)
        query = (
            select(Job.id)
            .where(
                Job.status == JobStatus.QUEUED,
                or_(
                    Job.announced_at.is_(None),
                    Job.announced_at < moment - timedelta(seconds=older_than_seconds),
                ),
                ~pending,
            )
            .limit(BATCH)
            .with_for_update(skip_locked=True)
        )
        forgotten = list(session.scalars(query))
        session.add_all(
            OutboxMessage(job_id=job_id, created_at=moment, not_before=moment, tries=0)
            for job_id in forgotten
        )
        return len(forgotten)
