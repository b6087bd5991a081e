"""What is forgotten for its age: artifacts, logs, events, jobs. Nothing is, unless the owner says after how many days."""

from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import ColumnElement, delete, exists, select, update
from sqlalchemy.orm import Session

from app.db.jobs import remember_usage
from app.db.models import ArtifactFile, Job, JobEvent, JobLogLine, JobSecret
from app.db.session import Database, clock, now
from app.db.sweeps import forget_tokens_of_ended_sweeps
from app.domain.job_status import TERMINAL

BATCH = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """Days after a job's end; None keeps permanently."""

    artifact_days: int | None = None
    log_days: int | None = None
    event_days: int | None = None
    job_days: int | None = None


def forget_secrets_of_ended_jobs(database: Database) -> None:
    """A Hub token lives as long as its job."""
    with database.write() as session:
        ended = exists().where(Job.id == JobSecret.job_id, Job.status.in_(TERMINAL))
        session.execute(delete(JobSecret).where(ended))
        forget_tokens_of_ended_sweeps(session)


def expire_artifacts(database: Database, days: int) -> list[str]:
    """Forget the files of old jobs; return the jobs, whose folders can go."""
    with database.write() as session:
        has_files = exists().where(ArtifactFile.job_id == Job.id)
        return drop_files(session, _old(session, days, has_files))


def drop_files(session: Session, jobs: list[str]) -> list[str]:
    """Forget the files of jobs that have ended; return the jobs, whose folders can go."""
    session.execute(delete(ArtifactFile).where(ArtifactFile.job_id.in_(jobs)))
    session.execute(
        update(Job)
        .where(Job.id.in_(jobs))
        .values(artifact_expired_at=clock(session), version=Job.version + 1)
    )
    return jobs


def expire_history(database: Database, retention: Retention) -> None:
    """Forget log lines and events of old jobs, each kind after its own time."""
    kinds: tuple[tuple[type[JobLogLine | JobEvent], int | None], ...] = (
        (JobLogLine, retention.log_days), (JobEvent, retention.event_days),
    )  # fmt: skip
    for table, days in kinds:
        if days is None:
            continue
        with database.write() as session:
            jobs = _old(session, days, exists().where(table.job_id == Job.id))
            session.execute(delete(table).where(table.job_id.in_(jobs)))


def expire_jobs(database: Database, days: int) -> list[str]:
    """Forget old jobs altogether; return them, whose folders can go."""
    with database.write() as session:
        jobs = _old(session, days, None)
        for job in session.scalars(select(Job).where(Job.id.in_(jobs))):
            remember_usage(session, job)
        session.execute(delete(Job).where(Job.id.in_(jobs)))
    return jobs


def _old(session: Session, days: int, more: ColumnElement[bool] | None) -> list[str]:
    """Some jobs that ended so long ago, locked."""
    query = select(Job.id).where(
        Job.status.in_(TERMINAL), Job.finished_at < now(session) - timedelta(days=days)
    )
    if more is not None:
        query = query.where(more)
    return list(session.scalars(query.limit(BATCH).with_for_update(skip_locked=True)))
