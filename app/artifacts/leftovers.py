"""Removes from a store what no job has a right to any more."""

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from sqlalchemy import exists, select
from sqlalchemy.orm import Session

from app.artifacts.store import ArtifactStore, StoredFile
from app.db.models import ArtifactFile, DeletedUsage, Job
from app.db.session import Database, now
from app.domain.errors import StoreAwayError
from app.domain.job_status import TERMINAL
from app.telemetry import log

IDS_AT_ONCE = 500
A_WHILE = timedelta(minutes=10)
LONGEST_FREEZE = timedelta(days=1)
"""After its job's end a frozen attempt may wake up and keep its files for so long; what comes later stays until the job goes."""


def drop_ended(database: Database, store: ArtifactStore) -> None:
    """Remove the work of jobs that have ended or were deleted; a queued job's stays for its next attempt.

    So does that of a job that the database has never heard of: it may be the wrong database.
    """
    for some in _batches(store.jobs_with_work()):
        with database.read() as session:
            ended = select(Job.id).where(Job.id.in_(some), Job.status.in_(TERMINAL))
            gone = {*session.scalars(ended), *_deleted(session, some)}
        for job_id in gone:
            with _left_for_later(job_id):
                store.drop_work(job_id)


def drop_unclaimed(database: Database, store: ArtifactStore) -> None:
    """Remove artifacts of deleted jobs, and of jobs that ended a while ago without one.

    They come about when a job is deleted, canceled or lost while an attempt keeps its result. An artifact of a
    job that the database has never heard of stays: it may be the wrong database.
    """
    for some in _batches(store.jobs()):
        with database.read() as session:
            unclaimed = select(Job.id).where(
                Job.id.in_(some),
                Job.status.in_(TERMINAL),
                Job.finished_at < now(session) - A_WHILE,
                ~exists().where(ArtifactFile.job_id == Job.id),
            )
            gone = {*session.scalars(unclaimed), *_deleted(session, some)}
        for job_id in gone:
            with _left_for_later(job_id):
                store.remove(job_id)


def drop_late(database: Database, store: ArtifactStore) -> None:
    """Remove what attempts kept after their job had ended with another's files."""
    for some in _batches(store.jobs()):
        with database.read() as session:
            moment = now(session)
            recent = select(Job.id).where(
                Job.id.in_(some),
                Job.finished_at.between(moment - LONGEST_FREEZE, moment - A_WHILE),
                exists().where(ArtifactFile.job_id == Job.id),
            )
            found = list(session.scalars(recent))
        for job_id in found:
            with _left_for_later(job_id):
                settle(database, store, job_id)


def settle(database: Database, store: ArtifactStore, job_id: str) -> None:
    """Remove what attempts kept of a job that has ended, but the files it has; of others nothing."""
    with database.read() as session:
        status = session.scalar(select(Job.status).where(Job.id == job_id))
        rows = session.scalars(select(ArtifactFile).where(ArtifactFile.job_id == job_id))
        files = [StoredFile(row.path, row.bytes, row.sha256) for row in rows]
    if status in TERMINAL:
        store.settle(job_id, files)


@contextmanager
def _left_for_later(job_id: str) -> Iterator[None]:
    """One job that cannot be removed must not keep the others."""
    try:
        yield
    except (OSError, StoreAwayError) as error:
        log.warning("leftover_not_removed", job_id=job_id, error=str(error))


def _batches(job_ids: Iterable[str]) -> Iterator[set[str]]:
    found = sorted(job_ids)
    for start in range(0, len(found), IDS_AT_ONCE):
        yield set(found[start : start + IDS_AT_ONCE])


def _deleted(session: Session, job_ids: Collection[str]) -> Iterable[str]:
    return session.scalars(select(DeletedUsage.job_id).where(DeletedUsage.job_id.in_(job_ids)))
