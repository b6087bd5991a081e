"""Folders of attempts, and what is left of those that died with their machine's worker."""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import select

from app.db.models import Job
from app.db.session import Database
from app.domain.job_status import OWNED

FOLDER = re.compile(r"(?P<job>job_[0-9a-z]+)\.(?P<attempt>\d+)")


def remove_leftovers(database: Database, *roots: Path) -> None:
    """Delete `<job>.<attempt>` folders whose attempt does not own its job (any more)."""
    found = [
        (folder, match["job"], int(match["attempt"]))
        for root in roots
        if root.is_dir()
        for folder in root.iterdir()
        if (match := FOLDER.fullmatch(folder.name))
    ]
    if not found:
        return
    with database.read() as session:
        query = select(Job.id, Job.attempt).where(
            Job.id.in_([job for _, job, _ in found]), Job.status.in_(OWNED)
        )
        live = {(job, attempt) for job, attempt in session.execute(query)}
    for folder, job, attempt in found:
        if (job, attempt) not in live:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def scratch_folder(root: Path, job_id: str, attempt: int) -> Iterator[Path]:
    """A folder for this attempt; those of its dead predecessors go, and it goes at the end."""
    root.mkdir(parents=True, exist_ok=True)
    for old in root.glob(f"{job_id}.*"):  # a later attempt may have come to this machine, too
        if old.suffix[1:].isdigit() and int(old.suffix[1:]) < attempt:
            shutil.rmtree(old, ignore_errors=True)
    folder = root / f"{job_id}.{attempt}"
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
