"""What must be done to jobs that nobody is holding: announce them, free the lost."""

from datetime import datetime, timedelta

from sqlalchemy import and_, delete, exists, or_, select, update
from sqlalchemy.orm import Session

from app.db.attempts import release
from app.db.events import append_event
from app.db.models import Job, OutboxMessage
from app.db.session import Database, now
from app.domain.job_status import OWNED, JobStatus

BATCH = 100
LOOKED_AT = 1000
RETRY_SECONDS = (1, 2, 5, 10, 30)
TAKEN_SECONDS = 15
UNSTARTED = {
    "code": "deadline_exceeded_before_start",
    "message": "no worker took the job within limits.max_pending_seconds",
    "retryable": True,
}
OVERDUE = {
    "code": "deadline_exceeded",
    "message": "the job took longer than its limits.max_runtime_seconds",
    "retryable": False,
}
MOST_NOTIFIED_AGAIN = 100
"""Of the oldest waiting jobs; more workers than that will not be free at once after a broker lost everything."""


def take_due_messages(session: Session) -> list[OutboxMessage]:
    """Outbox rows to send now; for `TAKEN_SECONDS` no other relay takes them."""
    query = (
        select(OutboxMessage)
        .where(OutboxMessage.not_before <= now(session))
        .order_by(OutboxMessage.id)
        .limit(BATCH)
        .with_for_update(skip_locked=True)
    )
    messages = list(session.scalars(query))
    for message in messages:
        message.not_before = now(session) + timedelta(seconds=TAKEN_SECONDS)
    return messages


def mark_sent(session: Session, messages: list[OutboxMessage]) -> None:
    """Forget sent messages and note when their jobs were announced."""
    session.execute(delete(OutboxMessage).where(OutboxMessage.id.in_([row.id for row in messages])))
    session.execute(
        update(Job)
        .where(Job.id.in_([row.job_id for row in messages]))
        .values(announced_at=now(session))
    )


def postpone(session: Session, failed: OutboxMessage, untried: list[OutboxMessage]) -> None:
    """Try a message again later, and those behind it that nobody tried as soon as it may work."""
    pause = RETRY_SECONDS[min(failed.tries, len(RETRY_SECONDS) - 1)]
    again = now(session) + timedelta(seconds=pause)
    session.execute(
        update(OutboxMessage)
        .where(OutboxMessage.id.in_([failed.id, *(one.id for one in untried)]))
        .values(not_before=again)
    )
    session.execute(
        update(OutboxMessage)
        .where(OutboxMessage.id == failed.id)
        .values(tries=OutboxMessage.tries + 1)
    )


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
    """End queued jobs whose clients do not want to wait any longer; return how many."""
    with database.write() as session:
        moment = now(session)
        # A job that was given back has been started in time, but may have used its own time up.
        unstarted = and_(Job.attempt == 0, Job.start_before < moment)
        given_back = and_(Job.attempt > 0, Job.max_runtime_seconds.is_not(None))
        overdue = []
        for kind in (unstarted, given_back):  # each by itself: many of one must not hide the other
            query = (
                select(Job)
                .where(Job.status == JobStatus.QUEUED, kind)
                .order_by(Job.started_at, Job.created_at)
                .limit(LOOKED_AT)
                .with_for_update(skip_locked=True)
            )
            overdue += [job for job in session.scalars(query) if _is_overdue(job, moment)]
        for job in overdue:
            job.status, job.finished_at = JobStatus.FAILED, moment
            job.version += 1
            job.error = dict(UNSTARTED if job.attempt == 0 else OVERDUE)
            session.flush()
            append_event(session, job, "status", {"status": job.status, "error": job.error})
        return len(overdue)


def _is_overdue(job: Job, moment: datetime) -> bool:
    if job.attempt == 0:
        return True
    if job.committing or job.started_at is None or job.max_runtime_seconds is None:
        return False  # a commit that may exist is looked for first
    return moment > job.started_at + timedelta(seconds=job.max_runtime_seconds)


def notify_forgotten_jobs(database: Database, older_than_seconds: float) -> int:
    """Queue a message for queued jobs without one: announced long ago, or given back."""
    with database.write() as session:
        moment = now(session)
        pending = exists().where(OutboxMessage.job_id == Job.id)
        oldest = (
            select(Job.id)
            .where(Job.status == JobStatus.QUEUED)
            .order_by(Job.created_at, Job.id)
            .limit(MOST_NOTIFIED_AGAIN)
        )
        query = (
            select(Job.id)
            .where(
                Job.id.in_(oldest.scalar_subquery()),
                or_(
                    Job.announced_at.is_(None),
                    Job.announced_at < moment - timedelta(seconds=older_than_seconds),
                ),
                ~pending,
            )
            .order_by(Job.created_at, Job.id)
            .with_for_update(skip_locked=True)
        )
        forgotten = list(session.scalars(query))
        session.add_all(
            OutboxMessage(job_id=job_id, created_at=moment, not_before=moment, tries=0)
            for job_id in forgotten
        )
        return len(forgotten)
