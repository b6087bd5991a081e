"""Routes for jobs."""

import re
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response, status
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool

from app.domain.errors import (
    ArtifactExpiredError,
    IdempotencyKeyReusedError,
    JobActiveError,
    JobNotFoundError,
    JobNotMeasurableError,
    JobNotRetryableError,
    PublishInProgressError,
    QuotaExceededError,
    RequestInProgressError,
    TokensDisabledError,
    UnsafeWebhookError,
)
from app.domain.job_status import TERMINAL
from app.domain.naming_errors import (
    ModelNotAllowedError,
    TooManyLabelsError,
    UnknownDatasetError,
    UnknownTaskError,
)
from app.http.auth import Reader, Writer
from app.http.problems import documented
from app.jobs.answers import accepted, etag_of, job_answer, job_headers
from app.jobs.parameters import (
    IdempotencyKey,
    JobId,
    Prefer,
)
from app.jobs.requests import JobChange, JobSubmission, Measuring
from app.jobs.schemas import JobPlan, JobView
from app.jobs.service import Jobs
from app.jobs.stream import changed, wanted_wait
from spq_core.errors import ArtifactError, RecipeError, UnsafeModelError, UnsupportedModelError
from spq_core.hub.errors import HubError

router = APIRouter(prefix="/jobs", tags=["jobs"])
ETAG = re.compile(r'"(\d{1,9})"')
DryRun = Annotated[
    bool, Query(description="Only answer what the job would be, what it would take, and its place in the queue.")
]  # fmt: skip


@router.post(
    "",
    status_code=status.HTTP_202_ACCEPTED,
    response_model=JobView,
    responses={
        200: {"model": JobPlan, "description": "With `dry_run`."},
        **documented(
            RecipeError, ModelNotAllowedError, UnknownDatasetError, UnknownTaskError, RequestInProgressError,
            UnsafeWebhookError, TokensDisabledError, QuotaExceededError, ArtifactError, UnsafeModelError,
            UnsupportedModelError, HubError,
        ),
    },
)  # fmt: skip
def submit_job(
    body: JobSubmission,
    jobs: Jobs,
    caller: Writer,
    key: IdempotencyKey = None,
    dry_run: DryRun = False,  # noqa: FBT002 - a query parameter
) -> JSONResponse:
    """Accept a compression job; poll the Location header for its progress.

    A request that is sent again with the same Idempotency-Key within 48 hours makes no second job: it
    gets the first one's answer, with `Idempotent-Replayed: true`.
    """
    if dry_run:
        return JSONResponse(jobs.plan(caller, body).model_dump(mode="json"))
    return accepted(jobs.submit(caller, body, key))


@router.get("/{job_id}", response_model=JobView, responses=documented(JobNotFoundError))
async def get_job(
    request: Request,
    job_id: JobId,
    jobs: Jobs,
    caller: Reader,
    prefer: Prefer = "",
) -> Response:
    """Show one job. Send the ETag back as If-None-Match: an unchanged job costs no body.

    With `Prefer: wait=30` the answer comes when the job has changed, or after so many seconds.
    """
    known = request.headers.get("if-none-match", "")
    version = ETAG.search(known)
    seconds = wanted_wait(prefer)
    preferred = {"Preference-Applied": f"wait={seconds}"} if seconds else {}
    if version or seconds:
        with jobs.waiting.place(caller.key_id) as free:
            found = await changed(
                lambda: jobs.glance(caller.tenant, job_id),
                int(version[1]) if version else None,
                seconds if free else 0,
            )
        if etag_of(found) in known:
            headers = job_headers(found) | preferred
            return Response(status_code=status.HTTP_304_NOT_MODIFIED, headers=headers)
    job, place = await run_in_threadpool(jobs.get_in_queue, caller.tenant, job_id)
    return job_answer(job, status.HTTP_200_OK, place, **preferred)


@router.patch(
    "/{job_id}",
    response_model=JobView,
    responses=documented(JobNotFoundError, TooManyLabelsError),
)
def change_job(job_id: JobId, jobs: Jobs, caller: Writer, body: JobChange) -> Response:
    """Set and remove labels."""
    job = jobs.change(caller.tenant, lambda repo: repo.change_labels(job_id, body.labels))
    return job_answer(job, status.HTTP_200_OK)


@router.post(
    "/{job_id}/cancel",
    response_model=JobView,
    responses={202: {"model": JobView}, **documented(JobNotFoundError, PublishInProgressError)},
)
def cancel_job(job_id: JobId, jobs: Jobs, caller: Writer) -> Response:
    """Stop a job: 200 when it has ended, 202 when its worker was asked to stop."""
    job = jobs.cancel(caller.tenant, job_id)
    ended = job.status in TERMINAL
    return job_answer(job, status.HTTP_200_OK if ended else status.HTTP_202_ACCEPTED)


@router.post(
    "/{job_id}/retry",
    status_code=status.HTTP_202_ACCEPTED,
    response_model=JobView,
    responses=documented(
        JobNotFoundError, JobNotRetryableError, QuotaExceededError, IdempotencyKeyReusedError
    ),
)
def retry_job(
    job_id: JobId, jobs: Jobs, caller: Writer, key: IdempotencyKey = None
) -> JSONResponse:
    """Accept a new job that asks for what a failed or canceled one did."""
    return accepted(jobs.retry(caller, job_id, key))


@router.post(
    "/{job_id}/measure",
    status_code=status.HTTP_202_ACCEPTED,
    response_model=JobView,
    responses=documented(
        JobNotFoundError, JobNotMeasurableError, ArtifactExpiredError, UnknownDatasetError, UnknownTaskError,
        QuotaExceededError, IdempotencyKeyReusedError,
    ),
)  # fmt: skip
def measure_job(
    job_id: JobId,
    jobs: Jobs,
    caller: Writer,
    body: Measuring | None = None,
    key: IdempotencyKey = None,
) -> JSONResponse:
    """Accept a new job that measures the artifact of one that has ended, and compresses nothing.

    For a job whose measuring failed (`result.missing`), and for other texts or tasks. The new job has the same
    artifact, with a model card that has the figures; it judges the recipe's gates, and publishes where the first
    one was to.
    """
    return accepted(jobs.measure(caller, job_id, body or Measuring(), key))


@router.delete(
    "/{job_id}",
    status_code=status.HTTP_204_NO_CONTENT,
    responses=documented(JobNotFoundError, JobActiveError),
)
def delete_job(job_id: JobId, jobs: Jobs, caller: Writer) -> None:
    """Forget a job that has ended, and its artifact in this service's store."""
    jobs.delete(caller.tenant, job_id)
