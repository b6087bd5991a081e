"""Routes for jobs."""

import re
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response, status
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.concurrency import run_in_threadpool

from app.db.jobs import JobFilter
from app.domain.errors import (
    ArtifactExpiredError,
    ArtifactNotFoundError,
    IdempotencyKeyReusedError,
    InvalidCursorError,
    JobActiveError,
    JobNotFoundError,
    JobNotMeasurableError,
    JobNotRetryableError,
    ModelNotAllowedError,
    PublishInProgressError,
    QuotaExceededError,
    RequestInProgressError,
    StoreAwayError,
    TokensDisabledError,
    TooManyLabelsError,
    TooManyStreamsError,
    UnknownDatasetError,
    UnknownTaskError,
    UnsafeWebhookError,
)
from app.domain.job_status import TERMINAL
from app.http.auth import Reader, Writer
from app.http.downloads import ranged
from app.http.event_stream import streamed
from app.http.problems import documented
from app.jobs.answers import accepted, cached, etag_of, job_answer, job_headers, listing
from app.jobs.labels import wanted_labels
from app.jobs.parameters import (
    After,
    CreatedAfter,
    Cursor,
    FilePath,
    IdempotencyKey,
    JobId,
    LastEventId,
    Limit,
    LongLimit,
    Model,
    OfSweep,
    Prefer,
    Status,
)
from app.jobs.schemas import (
    ArtifactFileView,
    EventView,
    JobPage,
    JobSubmission,
    JobView,
    LayerView,
    Listing,
    LogLineView,
    Measuring,
    MetricView,
)
from app.jobs.service import JobService
from app.jobs.stream import changed, job_news, wanted_wait
from app.jobs.views import job_view
from spq_core.errors import ArtifactError, RecipeError, UnsafeModelError, UnsupportedModelError
from spq_core.hub.errors import HubError

router = APIRouter(prefix="/jobs", tags=["jobs"])
ETAG = re.compile(r'"(\d{1,9})"')


async def _service(request: Request) -> JobService:
    service: JobService = request.app.state.jobs
    return service


Jobs = Annotated[JobService, Depends(_service)]


@router.post(
    "",
    status_code=status.HTTP_202_ACCEPTED,
    response_model=JobView,
    responses=documented(
        RecipeError, ModelNotAllowedError, UnknownDatasetError, UnknownTaskError, RequestInProgressError,
        UnsafeWebhookError, TokensDisabledError, QuotaExceededError, ArtifactError, UnsafeModelError,
        UnsupportedModelError, HubError,
    ),
)  # fmt: skip
def submit_job(
    body: JobSubmission, jobs: Jobs, caller: Writer, key: IdempotencyKey = None
) -> JSONResponse:
    """Accept a compression job; poll the Location header for its progress.

    A request that is sent again with the same Idempotency-Key within 48 hours makes no second job: it
    gets the first one's answer, with `Idempotent-Replayed: true`.
    """
    return accepted(jobs.submit(caller, body, key))


@router.get(
    "", response_model=JobPage, responses=documented(InvalidCursorError, TooManyLabelsError)
)
def list_jobs(
    request: Request,
    jobs: Jobs,
    caller: Reader,
    limit: Limit = 20,
    after: Cursor = None,
    job_status: Status = None,
    model: Model = None,
    created_after: CreatedAfter = None,
    sweep: OfSweep = None,
) -> Response:
    """List jobs, newest first; `label.NAME=VALUE` shows those with a label."""
    chosen = JobFilter(
        status=job_status,
        model=model,
        created_after=created_after,
        sweep=sweep,
        labels=wanted_labels(request.query_params),
    )
    found, more = jobs.page(caller.tenant, limit=limit, after=after, chosen=chosen)
    page = JobPage(
        data=[job_view(job) for job in found], has_more=more is not None, next_cursor=more
    )
    headers = {}
    if more is not None:
        headers["Link"] = f'<{request.url.include_query_params(after=more)}>; rel="next"'
    return cached(request, page.model_dump(mode="json"), headers)


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
    job = await run_in_threadpool(jobs.get, caller.tenant, job_id)
    return job_answer(job, status.HTTP_200_OK, **preferred)


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


@router.get(
    "/{job_id}/events",
    response_model=Listing[EventView],
    responses={
        200: {"content": {"text/event-stream": {}}},
        204: {"description": "A stream of a job that has ended has nothing more."},
        **documented(JobNotFoundError, TooManyStreamsError),
    },
)
def list_events(
    request: Request,
    job_id: JobId,
    jobs: Jobs,
    caller: Reader,
    after: After = 0,
    limit: LongLimit = 100,
    last_event_id: LastEventId = None,
) -> Listing[EventView] | Response:
    """The job's history: numbered without gaps.

    With `Accept: text/event-stream` it comes as it happens, until the job has ended; a stream that
    broke goes on behind `Last-Event-ID`.
    """
    if "text/event-stream" in request.headers.get("accept", ""):
        job = jobs.glance(caller.tenant, job_id)
        begin = after if last_event_id is None else last_event_id
        look = partial(job_news, jobs, caller.tenant, job_id)
        over = job.status in TERMINAL and begin >= job.last_event
        return streamed(jobs.waiting, caller.key_id, look, begin, over=over)
    rows = jobs.read(caller.tenant, lambda repo: repo.events(job_id, after=after, limit=limit + 1))
    return listing(rows, EventView, limit, after, lambda row: row.seq)


@router.get("/{job_id}/logs", responses=documented(JobNotFoundError))
def list_logs(
    job_id: JobId, jobs: Jobs, caller: Reader, after: After = 0, limit: LongLimit = 500
) -> Listing[LogLineView]:
    """Lines the job's processes wrote."""
    rows = jobs.read(
        caller.tenant, lambda repo: repo.log_lines(job_id, after=after, limit=limit + 1)
    )
    return listing(rows, LogLineView, limit, after, lambda row: row.id)


@router.get("/{job_id}/metrics", responses=documented(JobNotFoundError))
def list_metrics(job_id: JobId, jobs: Jobs, caller: Reader) -> Listing[MetricView]:
    """Every measured figure of source, plain INT8 and result."""
    rows = jobs.read(caller.tenant, lambda repo: repo.metrics(job_id))
    return listing(rows, MetricView, len(rows), 0, lambda _: len(rows))


@router.get("/{job_id}/layers", responses=documented(JobNotFoundError))
def list_layers(
    job_id: JobId, jobs: Jobs, caller: Reader, after: After = 0, limit: LongLimit = 1000
) -> Listing[LayerView]:
    """What each stage did to each matrix."""
    rows = jobs.read(caller.tenant, lambda repo: repo.layers(job_id, after=after, limit=limit + 1))
    return listing(rows, LayerView, limit, after, lambda row: row.number)


@router.get("/{job_id}/artifacts", responses=documented(JobNotFoundError))
def list_artifacts(job_id: JobId, jobs: Jobs, caller: Reader) -> Listing[ArtifactFileView]:
    """The files of the finished artifact."""
    rows = jobs.read(caller.tenant, lambda repo: repo.artifact_files(job_id))
    data = [
        ArtifactFileView(
            path=row.path, bytes=row.bytes, sha256=row.sha256,
            url=f"/jobs/{job_id}/artifacts/{row.path}",
        )
        for row in rows
    ]  # fmt: skip
    return Listing(data=data, has_more=False, next_after=len(data))


@router.get(
    "/{job_id}/artifacts/{path:path}",
    response_class=StreamingResponse,
    responses=documented(
        JobNotFoundError, ArtifactNotFoundError, ArtifactExpiredError, StoreAwayError
    ),
)
def download_artifact(
    request: Request, job_id: JobId, path: FilePath, jobs: Jobs, caller: Reader
) -> Response:
    """Download one file; a range is served, the ETag is its sha256."""
    file = jobs.artifact_file(caller.tenant, job_id, path)
    return ranged(
        request.headers,
        file.path,
        file.bytes,
        file.sha256,
        partial(jobs.artifact_content, job_id, file),
    )
