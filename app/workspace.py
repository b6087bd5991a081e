"""Where an attempt compresses: in the artifact store, so that another worker can go on with it.

    <artifacts>/.work/<job>.<attempt>/    one folder, of the newest attempt

A new attempt takes its predecessor's folder by renaming it. A predecessor that is still alive somewhere
(frozen, cut off) finds its paths gone, and what it has open is replaced, not written over.
"""

import os
import re
import shutil
from pathlib import Path

from sqlalchemy import select

from app.db.models import Job
from app.db.session import Database
from app.domain.errors import FencedError
from app.domain.job_status import TERMINAL

FOLDER = ".work"
IDS_AT_ONCE = 500
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
    """Remove the folders of jobs that have ended or were deleted; a queued job's stays for its next attempt."""
    root = artifact_dir / FOLDER
    if not root.is_dir():
        return
    found = {
        match["job"] for folder in root.iterdir() if (match := _NAME.fullmatch(folder.name))
    }  # fmt: skip
    if not found:
        return
    with database.read() as session:
        live = set(
            session.scalars(select(Job.id).where(Job.id.in_(found), Job.status.not_in(TERMINAL)))
        )
    for job_id in found - live:
        drop(artifact_dir, job_id)


def drop_artifact(artifact_dir: Path, job_id: str) -> None:
    """Remove a job's artifact."""
    shutil.rmtree(artifact_dir / job_id, ignore_errors=True)


def drop_orphans(database: Database, artifact_dir: Path) -> None:
    """Remove artifacts of jobs that are not known any more: deleted while an attempt was keeping its result."""
    found = [folder.name for folder in artifact_dir.glob("job_*") if _JOB.fullmatch(folder.name)]
    for start in range(0, len(found), IDS_AT_ONCE):
        some = set(found[start : start + IDS_AT_ONCE])
        with database.read() as session:
            known = set(session.scalars(select(Job.id).where(Job.id.in_(some))))
        for job_id in some - known:
            drop_artifact(artifact_dir, job_id)
