"""Routes for jobs."""

import hashlib
import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, Query, Request, Response, status
from fastapi.responses import FileResponse, JSONResponse
from pydantic import BaseModel

from app.auth import Reader, Writer
from app.db.models import Job
from app.domain.errors import (
    ArtifactNotFoundError,
    InvalidCursorError,
    JobActiveError,
    JobNotFoundError,
    ModelNotAllowedError,
    PublishingError,
    UnknownDatasetError,
)
from app.domain.job_status import TERMINAL, JobStatus
from app.jobs.schemas import (
    ArtifactFileView,
    EventView,
    JobPage,
    JobSubmission,
    JobView,
    LayerView,
    Listing,
    LogLineView,
    MetricView,
)
from app.jobs.service import JobService
from app.problems import documented
from spq_core.errors import RecipeError

router = APIRouter(prefix="/jobs", tags=["jobs"])
Limit = Annotated[int, Query(ge=1, le=100)]
LongLimit = Annotated[int, Query(ge=1, le=1000)]
After = Annotated[int, Query(ge=0, le=2**31 - 1)]
View = TypeVar("View", bound=BaseModel)
QUICK_POLL_SECONDS, POLL_SECONDS, SLOW_POLL_SECONDS = 2, 5, 15
YOUNG_SECONDS, OLD_SECONDS = 60, 600
NO_CACHE = "private, no-cache"


def _service(request: Request) -> JobService:
    service: JobService = request.app.state.jobs
    return service


Jobs = Annotated[JobService, Depends(_service)]


@router.post(
    "",
    status_code=status.HTTP_202_ACCEPTED,
    response_model=JobView,
    responses=documented(RecipeError, ModelNotAllowedError, UnknownDatasetError),
)
def submit_job(body: JobSubmission, jobs: Jobs, caller: Writer) -> JSONResponse:
    """Accept a compression job; poll the Location header for its progress."""
    job = jobs.submit(caller.tenant, body)
    return _job_answer(job, status.HTTP_202_ACCEPTED)


@router.get("", response_model=JobPage, responses=documented(InvalidCursorError))
def list_jobs(
    request: Request,
    jobs: Jobs,
    caller: Reader,
    limit: Limit = 20,
    after: str | None = None,
    job_status: Annotated[JobStatus | None, Query(alias="status")] = None,
) -> Response:
    """List jobs, newest first."""
    found, more = jobs.page(caller.tenant, limit=limit, after=after, status=job_status)
    page = JobPage(data=[_view(job) for job in found], has_more=more is not None, next_cursor=more)
    headers = {}
    if more is not None:
        headers["Link"] = f'<{request.url.include_query_params(after=more)}>; rel="next"'
    return _cached(request, page.model_dump(mode="json"), headers)


@router.get("/{job_id}", response_model=JobView, responses=documented(JobNotFoundError))
def get_job(request: Request, job_id: str, jobs: Jobs, caller: Reader) -> Response:
    """Show one job. Send the ETag back as If-None-Match: an unchanged job costs no body."""
    job = jobs.get(caller.tenant, job_id)
    etag = _etag(job)
    if etag in request.headers.get("if-none-match", ""):
        return Response(status_code=status.HTTP_304_NOT_MODIFIED, headers=_job_headers(job))
    return _job_answer(job, status.HTTP_200_OK)


@router.post(
    "/{job_id}/cancel",
    response_model=JobView,
    responses={202: {"model": JobView}, **documented(JobNotFoundError, PublishingError)},
)
def cancel_job(job_id: str, jobs: Jobs, caller: Writer) -> JSONResponse:
    """Stop a job: 200 when it has ended, 202 when its worker was asked to stop."""
    job = jobs.cancel(caller.tenant, job_id)
    ended = job.status in TERMINAL
    return _job_answer(job, status.HTTP_200_OK if ended else status.HTTP_202_ACCEPTED)


@router.delete(
    "/{job_id}",
    status_code=status.HTTP_204_NO_CONTENT,
    responses=documented(JobNotFoundError, JobActiveError),
)
def delete_job(job_id: str, jobs: Jobs, caller: Writer) -> None:
    """Forget a job that has ended, and its artifact in this service's store."""
    jobs.delete(caller.tenant, job_id)


@router.get("/{job_id}/events", responses=documented(JobNotFoundError))
def list_events(
    job_id: str, jobs: Jobs, caller: Reader, after: After = 0, limit: LongLimit = 100
) -> Listing[EventView]:
    """The job's history: numbered without gaps."""
    rows = jobs.read(caller.tenant, lambda repo: repo.events(job_id, after=after, limit=limit + 1))
    return _listing(rows, EventView, limit, after, lambda row: row.seq)


@router.get("/{job_id}/logs", responses=documented(JobNotFoundError))
def list_logs(
    job_id: str, jobs: Jobs, caller: Reader, after: After = 0, limit: LongLimit = 500
) -> Listing[LogLineView]:
    """Lines the job's processes wrote."""
    rows = jobs.read(
        caller.tenant, lambda repo: repo.log_lines(job_id, after=after, limit=limit + 1)
    )
    return _listing(rows, LogLineView, limit, after, lambda row: row.id)


@router.get("/{job_id}/metrics", responses=documented(JobNotFoundError))
def list_metrics(job_id: str, jobs: Jobs, caller: Reader) -> Listing[MetricView]:
    """Every measured figure of source, plain INT8 and result."""
    rows = jobs.read(caller.tenant, lambda repo: repo.metrics(job_id))
    return _listing(rows, MetricView, len(rows), 0, lambda _: len(rows))


@router.get("/{job_id}/layers", responses=documented(JobNotFoundError))
def list_layers(
    job_id: str, jobs: Jobs, caller: Reader, after: After = 0, limit: LongLimit = 1000
) -> Listing[LayerView]:
    """What each stage did to each matrix."""
    rows = jobs.read(caller.tenant, lambda repo: repo.layers(job_id, after=after, limit=limit + 1))
    return _listing(rows, LayerView, limit, after, lambda row: row.number)


@router.get("/{job_id}/artifacts", responses=documented(JobNotFoundError))
def list_artifacts(job_id: str, jobs: Jobs, caller: Reader) -> Listing[ArtifactFileView]:
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
    "/{job_id}/artifacts/{path}",
    response_class=FileResponse,
    responses=documented(JobNotFoundError, ArtifactNotFoundError),
)
def download_artifact(job_id: str, path: str, jobs: Jobs, caller: Reader) -> FileResponse:
    """Download one file; ranges are supported, the ETag is its sha256."""
    stored, file = jobs.artifact_path(caller.tenant, job_id, path)
    return FileResponse(
        stored,
        filename=file.path,
        media_type="application/octet-stream",
        headers={"ETag": f'"{file.sha256}"', "X-Content-Type-Options": "nosniff"},
    )


def _view(job: Job) -> JobView:
    base = f"/jobs/{job.id}"
    names = ("cancel", "events", "logs", "metrics", "layers", "artifacts")
    return JobView.model_validate(
        {
            **{name: getattr(job, name) for name in JobView.model_fields if hasattr(job, name)},
            "model": job.model_name,
            "urls": {"self": base, **{name: f"{base}/{name}" for name in names}},
        }
    )


def _etag(job: Job) -> str:
    return f'"{job.version}"'


def _job_headers(job: Job) -> dict[str, str]:
    headers = {"ETag": _etag(job), "Cache-Control": NO_CACHE, "Location": f"/jobs/{job.id}"}
    if job.status not in TERMINAL:
        headers["Retry-After"] = str(_poll_seconds(job))
    return headers


def _job_answer(job: Job, status_code: int) -> JSONResponse:
    return JSONResponse(_view(job).model_dump(mode="json"), status_code, _job_headers(job))


def _poll_seconds(job: Job) -> int:
    """How soon a look is worth it: soon for young jobs, later for long ones."""
    age = (datetime.now(UTC) - (job.started_at or job.created_at)).total_seconds()
    if age < YOUNG_SECONDS:
        return QUICK_POLL_SECONDS
    return POLL_SECONDS if age < OLD_SECONDS else SLOW_POLL_SECONDS


def _cached(request: Request, document: dict[str, Any], headers: dict[str, str]) -> Response:
    """Answer with an ETag over the content, or 304 when the client has it."""
    etag = f'"{hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()[:32]}"'
    headers |= {"ETag": etag, "Cache-Control": NO_CACHE}
    if etag in request.headers.get("if-none-match", ""):
        return Response(status_code=status.HTTP_304_NOT_MODIFIED, headers=headers)
    return JSONResponse(document, headers=headers)


def _listing(
    rows: list[Any], view: type[View], limit: int, after: int, number: Callable[[Any], int]
) -> Listing[View]:
    shown = rows[:limit]
    return Listing[View](
        data=[view.model_validate(row) for row in shown],
        has_more=len(rows) > limit,
        next_after=number(shown[-1]) if shown else after,
    )
