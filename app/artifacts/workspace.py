"""Where an attempt compresses: in the artifact store, so that another worker can go on with it.

    <artifacts>/.work/<job>.<attempt>/    one folder, of the newest attempt

A new attempt takes its predecessor's folder by renaming it. A predecessor that is still alive somewhere
(frozen, cut off) finds its paths gone, and what it has open is replaced, not written over.
"""

import os
import re
import shutil
from collections.abc import Collection, Iterable
from datetime import timedelta
from pathlib import Path

from sqlalchemy import exists, select
from sqlalchemy.orm import Session

from app.db.models import ArtifactFile, DeletedUsage, Job
from app.db.session import Database, now
from app.domain.errors import FencedError
from app.domain.job_status import TERMINAL

FOLDER = ".work"
IDS_AT_ONCE = 500
A_WHILE = timedelta(minutes=10)
_JOB = re.compile(r"job_[0-9a-f]{32}")
_NAME = re.compile(r"(?P<job>job_[0-9a-f]{32})\.(?P<attempt>\d+)")


def take_over(artifact_dir: Path, job_id: str, attempt: int) -> Path:
    """The attempt's folder, with what the newest of its predecessors left.

    Raises:
        FencedError: a later attempt has a folder already.
    """
    root = artifact_dir / FOLDER
    root.mkdir(parents=True, exist_ok=True)
    own = root / f"{job_id}.{attempt}"
    earlier = sorted(root.glob(f"{job_id}.*"), key=lambda path: int(path.suffix[1:]))
    if earlier and int(earlier[-1].suffix[1:]) > attempt:
        raise FencedError(job_id, attempt)
    for older in earlier[:-1]:
        shutil.rmtree(older, ignore_errors=True)
    if earlier:
        os.replace(earlier[-1], own)  # noqa: PTH105
    else:
        own.mkdir()
    return own


def drop(artifact_dir: Path, job_id: str) -> None:
    """Remove what a job that has ended left."""
    for folder in (artifact_dir / FOLDER).glob(f"{job_id}.*"):
        shutil.rmtree(folder, ignore_errors=True)


def drop_ended(database: Database, artifact_dir: Path) -> None:
    """Remove the folders of jobs that have ended or were deleted; a queued job's stays for its next attempt.

    So does one of a job that the database has never heard of: it may be the wrong database.
    """
    root = artifact_dir / FOLDER
    if not root.is_dir():
        return
    found = {
        match["job"] for folder in root.iterdir() if (match := _NAME.fullmatch(folder.name))
    }  # fmt: skip
    if not found:
        return
    with database.read() as session:
        ended = select(Job.id).where(Job.id.in_(found), Job.status.in_(TERMINAL))
        for job_id in {*session.scalars(ended), *_deleted(session, found)}:
            drop(artifact_dir, job_id)


def drop_artifact(artifact_dir: Path, job_id: str) -> None:
    """Remove a job's artifact."""
    shutil.rmtree(artifact_dir / job_id, ignore_errors=True)


def drop_unclaimed(database: Database, artifact_dir: Path) -> None:
    """Remove artifacts of deleted jobs, and of jobs that ended a while ago without one.

    They come about when a job is deleted, canceled or lost while an attempt keeps its result. A folder of a
    job that the database has never heard of stays: it may be the wrong database.
    """
    found = [folder.name for folder in artifact_dir.glob("job_*") if _JOB.fullmatch(folder.name)]
    for start in range(0, len(found), IDS_AT_ONCE):
        some = set(found[start : start + IDS_AT_ONCE])
        with database.read() as session:
            unclaimed = select(Job.id).where(
                Job.id.in_(some),
                Job.status.in_(TERMINAL),
                Job.finished_at < now(session) - A_WHILE,
                ~exists().where(ArtifactFile.job_id == Job.id),
            )
            gone = {*session.scalars(unclaimed), *_deleted(session, some)}
        for job_id in gone:
            drop_artifact(artifact_dir, job_id)


def _deleted(session: Session, job_ids: Collection[str]) -> Iterable[str]:
    return session.scalars(select(DeletedUsage.job_id).where(DeletedUsage.job_id.in_(job_ids)))
