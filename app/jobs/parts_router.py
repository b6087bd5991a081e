"""Routes for what belongs to a job: history, log, figures, layers, files."""

from functools import partial
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response, status
from fastapi.responses import StreamingResponse

from app.domain.errors import (
    ArtifactExpiredError,
    ArtifactNotFoundError,
    JobNotFoundError,
    StoreAwayError,
    TooManyStreamsError,
)
from app.domain.job_status import TERMINAL
from app.http.auth import Reader
from app.http.downloads import ranged
from app.http.event_stream import streamed
from app.http.problems import documented
from app.jobs.answers import listing
from app.jobs.archive import Archive
from app.jobs.parameters import After, FilePath, JobId, LastEventId, LongLimit
from app.jobs.schemas import (
    ArtifactFileView,
    EventView,
    LayerView,
    Listing,
    LogLineView,
    MetricView,
)
from app.jobs.service import Jobs
from app.jobs.stream import job_news, log_news, log_text

router = APIRouter(prefix="/jobs", tags=["jobs"])
PLAIN = {"X-Content-Type-Options": "nosniff"}
AsText = Annotated[
    bool, Query(alias="text", description="All of it as text, for links, as `Accept: text/plain`.")
]
Tail = Annotated[
    int | None, Query(ge=1, le=10_000, description="Begin with the last so many lines.")
]


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
        news = look(begin) if job.status in TERMINAL else None
        over = news is not None and not news.events  # they may be too old to be kept
        return streamed(jobs.waiting, caller.key_id, look, begin, over=over)
    rows = jobs.read(caller.tenant, lambda repo: repo.events(job_id, after=after, limit=limit + 1))
    return listing(rows, EventView, limit, after, lambda row: row.seq)


@router.get(
    "/{job_id}/logs",
    response_model=Listing[LogLineView],
    responses={
        200: {"content": {"text/event-stream": {}, "text/plain": {}}},
        204: {"description": "A stream of a job that has ended has nothing more."},
        **documented(JobNotFoundError, TooManyStreamsError),
    },
)
def list_logs(
    request: Request,
    job_id: JobId,
    jobs: Jobs,
    caller: Reader,
    after: After = 0,
    limit: LongLimit = 500,
    tail: Tail = None,
    as_text: AsText = False,  # noqa: FBT002 - a query parameter
    last_event_id: LastEventId = None,
) -> Listing[LogLineView] | Response:
    """Lines the job's processes wrote, and one when a stage begins or ends.

    With `Accept: text/event-stream` they come as they are written, until the job has ended. With
    `Accept: text/plain` all of them come, as text.
    """
    wanted = "text/plain" if as_text else request.headers.get("accept", "")
    if tail is not None:
        after = jobs.before_tail(caller.tenant, job_id, tail)
    if "text/event-stream" in wanted:
        job = jobs.glance(caller.tenant, job_id)
        begin = after if last_event_id is None else last_event_id
        look = partial(log_news, jobs, caller.tenant, job_id)
        over = job.status in TERMINAL and not look(begin).events
        return streamed(jobs.waiting, caller.key_id, look, begin, over=over)
    if "text/plain" in wanted:
        jobs.glance(caller.tenant, job_id)
        lines = log_text(jobs, caller.tenant, job_id, after)
        return StreamingResponse(lines, media_type="text/plain; charset=utf-8", headers=PLAIN)
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
    "/{job_id}/archive",
    response_class=StreamingResponse,
    responses={
        200: {"content": {"application/x-tar": {}}},
        **documented(JobNotFoundError, ArtifactNotFoundError, ArtifactExpiredError, StoreAwayError),
    },
)
def download_archive(request: Request, job_id: JobId, jobs: Jobs, caller: Reader) -> Response:
    """Download the whole artifact as one tar file, in a folder named after the job; it is not compressed further."""
    job, files = jobs.whole_artifact(caller.tenant, job_id)
    archive = Archive(job_id, job.finished_at or job.created_at, files)
    headers = {
        "ETag": f'"{archive.digest}"', "Content-Length": str(archive.size),
        "Content-Disposition": f'attachment; filename="{job_id}.tar"',
    }  # fmt: skip
    if headers["ETag"] in request.headers.get("if-none-match", ""):
        return Response(status_code=status.HTTP_304_NOT_MODIFIED, headers={"ETag": headers["ETag"]})
    content = archive.content(partial(jobs.artifact_content, job_id))
    return StreamingResponse(content, headers=headers, media_type="application/x-tar")


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
