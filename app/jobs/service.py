"""What the API can do with jobs. Each method is one transaction."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.db.jobs import JobRepository, NewJob
from app.db.models import ArtifactFile, Job
from app.db.session import Database
from app.domain.errors import ArtifactNotFoundError, ModelNotAllowedError, UnknownDatasetError
from app.domain.job_status import JobStatus
from app.jobs import cursor
from app.jobs.schemas import JobSubmission, ModelReference
from app.telemetry import JOBS_CREATED, log
from spq_core.calibration.texts import is_known
from spq_core.catalog import resolve


@dataclass(frozen=True, slots=True)
class JobService:
    """Use cases; `wake` tells the outbox relay that a doorbell waits."""

    database: Database
    wake: Callable[[], None]
    model_folders: tuple[Path, ...]
    artifact_dir: Path
    data_dir: Path | None
    max_attempts: int

    def submit(self, tenant: str, body: JobSubmission) -> Job:
        """Accept a job: the row, its first event and its doorbell commit together.

        Raises:
            RecipeError: the recipe is unknown or malformed.
            ModelNotAllowedError: the local model is not in an allowed folder.
            UnknownDatasetError: a dataset is neither known nor in the data folder.
        """
        recipe = resolve(body.recipe)
        self._check_local_model(body.model)
        self._check_datasets({*body.evaluation.perplexity, recipe.calibration.dataset})
        new = NewJob(
            request=body.model_dump(mode="json"),
            recipe=recipe.document(),
            recipe_sha256=recipe.sha256(),
            model_name=body.model.name,
            max_attempts=self.max_attempts,
        )
        with self.database.write() as session:
            job = JobRepository(session, tenant).add(new)
        self.wake()
        JOBS_CREATED.labels(
            recipe.metadata.name if isinstance(body.recipe, str) else "custom"
        ).inc()
        log.info("job_accepted", job_id=job.id, tenant=tenant)
        return job

    def get(self, tenant: str, job_id: str) -> Job:
        """Return one job."""
        with self.database.read() as session:
            return JobRepository(session, tenant).get(job_id)

    def page(
        self, tenant: str, *, limit: int, after: str | None, status: JobStatus | None
    ) -> tuple[list[Job], str | None]:
        """Return a page of jobs and the cursor of the next one, if there is one."""
        position = cursor.decode(after) if after else None
        with self.database.read() as session:
            jobs = JobRepository(session, tenant).page(
                limit=limit + 1, after=position, status=status
            )
        shown = jobs[:limit]
        more = cursor.encode(shown[-1].created_at, shown[-1].id) if len(jobs) > limit else None
        return shown, more

    def cancel(self, tenant: str, job_id: str) -> Job:
        """Ask a job to stop."""
        with self.database.write() as session:
            return JobRepository(session, tenant).cancel(job_id)

    def delete(self, tenant: str, job_id: str) -> None:
        """Forget a terminal job and remove its artifact."""
        with self.database.write() as session:
            JobRepository(session, tenant).remove(job_id)
        shutil.rmtree(self.artifact_dir / job_id, ignore_errors=True)

    def read(self, tenant: str, look: Callable[[JobRepository], list[Any]]) -> list[Any]:
        """Run one of the repository's list queries."""
        with self.database.read() as session:
            return look(JobRepository(session, tenant))

    def artifact_path(self, tenant: str, job_id: str, path: str) -> tuple[Path, ArtifactFile]:
        """Return where a listed artifact file is on disk; only listed names are ever opened.

        Raises:
            ArtifactNotFoundError: the job has no such file.
        """
        with self.database.read() as session:
            files = JobRepository(session, tenant).artifact_files(job_id)
        for file in files:
            stored = self.artifact_dir / job_id / file.path
            if file.path == path and stored.is_file():
                return stored, file
        raise ArtifactNotFoundError(path)

    def _check_local_model(self, model: ModelReference) -> None:
        if model.path is None:
            return
        if not any(
            (folder / model.path / "config.json").is_file() for folder in self.model_folders
        ):
            raise ModelNotAllowedError(model.path)

    def _check_datasets(self, names: set[str]) -> None:
        for name in sorted(names):
            if not is_known(name, self.data_dir):
                raise UnknownDatasetError(name)
