"""What the API can do with jobs. Each method is one transaction."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Request
from sqlalchemy.orm import Session

from app.artifacts.store import ArtifactStore, StoredFile
from app.db.idempotency import Idempotency, recall, remember
from app.db.jobs import Glance, JobRepository, NewJob, glance
from app.db.keys import Principal
from app.db.models import Job
from app.db.quotas import count_request, require_room
from app.db.session import Database
from app.db.waiting_jobs import QueuePlace, next_place, queue_places
from app.domain.errors import (
    ArtifactExpiredError,
    ArtifactNotFoundError,
    JobNotMeasurableError,
    JobNotRetryableError,
    StoreAwayError,
)
from app.domain.job_status import RETRYABLE, TERMINAL, JobStatus
from app.http.waiting import WaitingRoom
from app.jobs.admission import Admission
from app.jobs.repeated import Accepted, asked_document, idempotency, replayed
from app.jobs.requests import JobSubmission, Measuring, ModelReference
from app.jobs.schemas import JobPlan
from app.jobs.views import job_view, plan_view
from app.telemetry import JOBS_CREATED, log
from app.tracing import current_traceparent
from spq_core.estimate.estimate import Estimate
from spq_core.evaluation.settings import EvaluationSettings
from spq_core.recipe.catalog import resolve
from spq_core.recipe.document import Recipe, parse_recipe


@dataclass(frozen=True, slots=True)
class JobService:
    """Use cases; `wake` tells the outbox relay that a message waits."""

    database: Database
    wake: Callable[[], None]
    store: ArtifactStore
    max_attempts: int
    submissions_per_minute: int
    """Of one API key."""
    admission: Admission
    waiting: WaitingRoom
    check_webhook: Callable[[Session, str, str], None]
    """Raises if a tenant's jobs cannot have a webhook at a URL; makes the tenant's secret if need be."""
    require_feasible: Callable[
        [Recipe, ModelReference, EvaluationSettings, str | None], tuple[Estimate, str | None] | None
    ]
    """Raises if a job could not work, as far as headers tell; else what it would take, and the commit looked at."""

    def plan(self, caller: Principal, body: JobSubmission) -> JobPlan:
        """What `submit` would accept; counts as a submission, for it takes as long.

        Raises:
            SpqError, DomainError: as for `submit`.
        """
        count_request(self.database, caller.key_id, self.submissions_per_minute)
        recipe = resolve(body.recipe)
        looked = self._looked_at(body, recipe)
        with self.database.write() as session:
            require_room(session, caller.tenant)
            if body.webhook is not None:
                self.check_webhook(session, caller.tenant, body.webhook.url)
        with self.database.read() as session:
            place = next_place(session)
        return plan_view(body, recipe, looked, place)

    def submit(self, caller: Principal, body: JobSubmission, key: str | None) -> Accepted:
        """Accept a job: the row, its first event, its outbox message and the answer commit together.

        Args:
            key: the Idempotency-Key; a request that came with it before gets the answer it got then.

        Raises:
            RecipeError: the recipe is unknown or malformed, or not for this model.
            UnsupportedModelError, UnsafeModelError, ArtifactError, HubError: the model cannot be compressed, as
                far as its headers tell.
            ModelNotAllowedError: the local model is not in an allowed folder.
            UnknownDatasetError: a dataset is neither known nor in the data folder.
            UnknownTaskError: a task's questions are not in the data folder.
            UnsafeWebhookError, WebhooksDisabledError: its webhook cannot be called.
            TokensDisabledError: its Hub token could not be kept.
            QuotaExceededError, RateLimitedError: the tenant or its key may not, now.
            IdempotencyKeyReusedError, RequestInProgressError: see `recall`.
        """
        asked = idempotency(caller.tenant, key, asked_document(caller.tenant, body))
        if (before := self._replayed(caller, asked)) is not None:
            return before
        recipe = resolve(body.recipe)
        self._looked_at(body, recipe)
        new = NewJob(
            request=body.model_dump(mode="json"),
            recipe=recipe.document(),
            recipe_sha256=recipe.sha256(),
            model_name=body.model.name,
            max_attempts=self.max_attempts,
            max_pending_seconds=body.limits.max_pending_seconds,
            max_runtime_seconds=body.limits.max_runtime_seconds,
            sealed_token=self.admission.sealed(body.hub_token),
            traceparent=current_traceparent(),
        )
        kind = recipe.metadata.name if isinstance(body.recipe, str) else "custom"
        return self._accept(caller, new, asked, kind)

    def _looked_at(self, body: JobSubmission, recipe: Recipe) -> tuple[Estimate, str | None] | None:
        """Refuse what cannot work, as far as can be told before a worker looks."""
        self.admission.check_local_model(body.model)
        self.admission.check_datasets({*body.evaluation.perplexity, *recipe.calibration.datasets})
        self.admission.check_tasks(body.evaluation.tasks, recipe)
        token = None if body.hub_token is None else body.hub_token.get_secret_value()
        return self.require_feasible(recipe, body.model, body.evaluation, token)

    def retry(self, caller: Principal, job_id: str, key: str | None) -> Accepted:
        """Accept a new job with the request and the recipe of one that did not succeed.

        Raises:
            JobNotFoundError: there is no such job.
            JobNotRetryableError: it succeeded, has not ended, or had a Hub token of its own, which is gone.
            QuotaExceededError, RateLimitedError, IdempotencyKeyReusedError, RequestInProgressError:
                as for `submit`.
        """
        asked = idempotency(caller.tenant, key, {"retry": job_id})
        if (before := self._replayed(caller, asked)) is not None:
            return before
        old = self.get(caller.tenant, job_id)
        if old.status not in RETRYABLE:
            raise JobNotRetryableError(job_id, f"is {old.status}")
        if old.request.get("hub_token") is not None:
            raise JobNotRetryableError(job_id, "had a hub_token of its own, which is forgotten")
        new = self._like(old, old.request, retry_of=old.id)
        return self._accept(caller, new, asked, "retried")

    def measure(self, caller: Principal, job_id: str, body: Measuring, key: str | None) -> Accepted:
        """Accept a new job that measures the artifact of one that has ended.

        Raises:
            JobNotFoundError: there is no such job.
            JobNotMeasurableError: it has not ended, or has no artifact.
            ArtifactExpiredError: it had one.
            UnknownDatasetError, UnknownTaskError: as for `submit`.
            QuotaExceededError, RateLimitedError, IdempotencyKeyReusedError, RequestInProgressError:
                as for `submit`.
        """
        document = {"measure": job_id, **body.model_dump(mode="json")}
        asked = idempotency(caller.tenant, key, document)
        if (before := self._replayed(caller, asked)) is not None:
            return before
        old = self._measurable(caller.tenant, job_id)
        request = old.request | {"measure_of": job_id}
        if old.source_commit is not None:
            request["model"] = request["model"] | {"revision": old.source_commit}
        if body.evaluation is not None:
            self.admission.check_datasets(set(body.evaluation.perplexity))
            self.admission.check_tasks(body.evaluation.tasks, parse_recipe(old.recipe))
            request["evaluation"] = body.evaluation.model_dump(mode="json")
        new = self._like(old, request)
        return self._accept(caller, new, asked, "measured")

    def _like(self, old: Job, request: dict[str, Any], retry_of: str | None = None) -> NewJob:
        """A job with another's recipe and limits."""
        return NewJob(
            request=request,
            recipe=old.recipe,
            recipe_sha256=old.recipe_sha256,
            model_name=old.model_name,
            max_attempts=self.max_attempts,
            max_pending_seconds=old.request.get("limits", {}).get("max_pending_seconds"),
            max_runtime_seconds=old.max_runtime_seconds,
            retry_of=retry_of,
            traceparent=current_traceparent(),
        )

    def _measurable(self, tenant: str, job_id: str) -> Job:
        with self.database.read() as session:
            jobs = JobRepository(session, tenant)
            old, files = jobs.get(job_id), jobs.artifact_files(job_id)
        if old.status not in TERMINAL:
            raise JobNotMeasurableError(job_id, f"is {old.status}")
        if old.artifact_expired_at is not None:
            raise ArtifactExpiredError(old.artifact_expired_at)
        if not files or not (old.result or {}).get("load_check"):
            raise JobNotMeasurableError(job_id, "has no finished artifact here")
        if old.request.get("hub_token") is not None:
            raise JobNotMeasurableError(job_id, "had a hub_token of its own, which is forgotten")
        return old

    def _replayed(self, caller: Principal, asked: Idempotency | None) -> Accepted | None:
        return replayed(self.database, caller, asked, self.submissions_per_minute)

    def _accept(
        self, caller: Principal, new: NewJob, asked: Idempotency | None, kind: str
    ) -> Accepted:
        tenant = caller.tenant
        rate = count_request(self.database, caller.key_id, self.submissions_per_minute)
        with self.database.write() as session:
            before = None if asked is None else recall(session, asked)
            if before is not None:
                return Accepted(before, rate, replayed=True)
            require_room(session, tenant)
            hook = new.request.get("webhook")
            if hook is not None:
                self.check_webhook(session, tenant, hook["url"])
            job = JobRepository(session, tenant).add(new, rate.counted_at)
            answer = job_view(job).model_dump(mode="json")
            if asked is not None:
                remember(session, asked, answer)
        self.wake()
        JOBS_CREATED.labels(kind).inc()
        log.info("job_accepted", job_id=job.id, tenant=tenant)
        return Accepted(answer, rate, replayed=False)

    def get(self, tenant: str, job_id: str) -> Job:
        """Return one job."""
        with self.database.read() as session:
            return JobRepository(session, tenant).get(job_id)

    def glance(self, tenant: str, job_id: str) -> Glance:
        """Return what polling clients wait for."""
        with self.database.look() as connection:
            return glance(connection, tenant, job_id)

    def get_in_queue(self, tenant: str, job_id: str) -> tuple[Job, QueuePlace | None]:
        """Return one job, and its place among those that wait."""
        with self.database.read() as session:
            job = JobRepository(session, tenant).get(job_id)
            waits = job.status == JobStatus.QUEUED
            return job, queue_places(session).get(job_id) if waits else None

    def change(self, tenant: str, change: Callable[[JobRepository], Job]) -> Job:
        """Run one of the repository's changes."""
        with self.database.write() as session:
            return change(JobRepository(session, tenant))

    def cancel(self, tenant: str, job_id: str) -> Job:
        """Ask a job to stop."""
        with self.database.write() as session:
            return JobRepository(session, tenant).cancel(job_id)

    def delete(self, tenant: str, job_id: str) -> None:
        """Forget a terminal job and remove its artifact."""
        with self.database.write() as session:
            JobRepository(session, tenant).remove(job_id)
        with suppress(StoreAwayError):  # housekeeping tries again
            self.store.remove(job_id)

    def read(self, tenant: str, look: Callable[[JobRepository], list[Any]]) -> list[Any]:
        """Run one of the repository's list queries."""
        with self.database.read() as session:
            return look(JobRepository(session, tenant))

    def artifact_file(self, tenant: str, job_id: str, path: str) -> StoredFile:
        """Return a listed artifact file; only listed names are ever opened.

        Raises:
            ArtifactNotFoundError: the job has no such file.
            ArtifactExpiredError: it had files.
        """
        with self.database.read() as session:
            jobs = JobRepository(session, tenant)
            files = jobs.artifact_files(job_id)
            expired_at = jobs.get(job_id).artifact_expired_at
        if expired_at is not None:
            raise ArtifactExpiredError(expired_at)
        for file in files:
            if file.path == path:
                return StoredFile(file.path, file.bytes, file.sha256)
        raise ArtifactNotFoundError(path)

    def whole_artifact(self, tenant: str, job_id: str) -> tuple[Job, list[StoredFile]]:
        """Return a job and all its artifact's files.

        Raises:
            ArtifactNotFoundError: the job has none.
            ArtifactExpiredError: it had one.
        """
        with self.database.read() as session:
            jobs = JobRepository(session, tenant)
            job, files = jobs.get(job_id), jobs.artifact_files(job_id)
        if job.artifact_expired_at is not None:
            raise ArtifactExpiredError(job.artifact_expired_at)
        if not files:
            raise ArtifactNotFoundError("archive")
        return job, [StoredFile(file.path, file.bytes, file.sha256) for file in files]

    def before_tail(self, tenant: str, job_id: str, lines: int) -> int:
        """The number behind which the last so many lines of a job's log are."""
        with self.database.read() as session:
            return JobRepository(session, tenant).before_tail(job_id, lines)

    def artifact_content(
        self, job_id: str, file: StoredFile, start: int = 0, stop: int | None = None
    ) -> Iterator[bytes]:
        """Return a listed file's bytes, or some of them.

        Raises:
            ArtifactNotFoundError: the store does not have it.
        """
        try:
            return self.store.read(job_id, file, start, stop)
        except FileNotFoundError:
            raise ArtifactNotFoundError(file.path) from None


async def job_service(request: Request) -> JobService:
    """The process's own."""
    service: JobService = request.app.state.jobs
    return service


Jobs = Annotated[JobService, Depends(job_service)]
