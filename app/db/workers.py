"""Which workers are there."""

from datetime import timedelta
from typing import Any

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from app.db.models import Job, WorkerPresence
from app.db.session import Database, now
from app.domain.job_status import OWNED, JobStatus

PRESENT = timedelta(seconds=60)


def note_presence(database: Database, worker_id: str, facts: dict[str, Any]) -> None:
    """Say that a worker is there, and what it is."""
    with database.write() as session:
        session.merge(WorkerPresence(id=worker_id, seen_at=now(session), facts=facts))


def forget_worker(database: Database, worker_id: str) -> None:
    """It has ended."""
    with database.write() as session:
        session.execute(delete(WorkerPresence).where(WorkerPresence.id == worker_id))


def forget_absent_workers(database: Database) -> None:
    """Those that have not said anything for long."""
    with database.write() as session:
        session.execute(
            delete(WorkerPresence).where(WorkerPresence.seen_at < now(session) - 10 * PRESENT)
        )


def present_workers(session: Session) -> list[WorkerPresence]:
    """Those that said something within the last minute."""
    query = select(WorkerPresence).where(WorkerPresence.seen_at > now(session) - PRESENT)
    return list(session.scalars(query.order_by(WorkerPresence.id)))


def busy_workers(session: Session) -> tuple[dict[str, Job], int]:
    """By worker, the job it has; and how many jobs wait."""
    running = session.scalars(select(Job).where(Job.status.in_(OWNED), Job.worker_id.is_not(None)))
    waiting = select(func.count()).where(Job.status == JobStatus.QUEUED)
    return {str(job.worker_id): job for job in running}, session.scalar(waiting) or 0
