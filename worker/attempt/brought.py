"""Another job's artifact, brought to where this attempt's run measures it."""

import hashlib
from pathlib import Path

from pydantic import ValidationError

from app.artifacts.store import ArtifactStore, StoredFile
from app.db.jobs import JobRepository
from app.db.session import Database
from app.domain.errors import DamagedArtifactError, JobNotFoundError
from worker.children.messages import FinishedArtifact
from worker.errors import failed


def bring_artifact(
    database: Database, store: ArtifactStore, tenant: str, job_id: str, folder: Path
) -> FinishedArtifact:
    """Copy a job's files out of the store, unless an earlier attempt has, and say what is known of them.

    Raises:
        ChildFailedError: the job or its artifact is gone, or a file is not what it was.
        StoreAwayError: the store does not answer.
    """
    try:
        known, files = _found(database, tenant, job_id)
        for file in files:
            _bring(store, job_id, file, folder / file.path)
    except (JobNotFoundError, FileNotFoundError, ValidationError):
        raise failed("artifact_not_found", f"the artifact of {job_id} is gone") from None
    except DamagedArtifactError as error:
        raise failed(error.code, str(error)) from None
    return known


def _found(
    database: Database, tenant: str, job_id: str
) -> tuple[FinishedArtifact, list[StoredFile]]:
    with database.read() as session:
        jobs = JobRepository(session, tenant)
        known = FinishedArtifact.model_validate(jobs.get(job_id).result)
        rows = jobs.artifact_files(job_id)
        files = [StoredFile(row.path, row.bytes, row.sha256) for row in rows]
    if not files:
        raise JobNotFoundError(job_id)
    return known, files


def _bring(store: ArtifactStore, job_id: str, file: StoredFile, path: Path) -> None:
    if path.is_file() and path.stat().st_size == file.bytes:
        return  # its digest is looked at before it is measured
    path.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    part = path.with_name(f"{path.name}.part")
    with part.open("wb") as target:
        for piece in store.read(job_id, file):
            digest.update(piece)
            target.write(piece)
    if digest.hexdigest() != file.sha256:
        part.unlink()
        raise DamagedArtifactError(file.path)
    part.replace(path)
