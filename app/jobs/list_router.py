"""Routes for many jobs: lists, counts, one action for many."""

from datetime import datetime
from typing import Any

from fastapi import APIRouter, Request, Response

from app.db.job_lists import COLUMNS, Order, Position, job_counts, job_page, position_of
from app.db.waiting_jobs import queue_places
from app.domain.job_status import JobStatus
from app.domain.naming_errors import InvalidCursorError, TooManyLabelsError, UnknownFilterError
from app.http.auth import Reader, Writer
from app.http.problems import documented
from app.jobs import cursor
from app.jobs.answers import cached
from app.jobs.batch import BatchRequest, BatchResult, run_batch
from app.jobs.list_parameters import Chosen, Shape, Sort, order_of
from app.jobs.parameters import Cursor, Limit
from app.jobs.rows import job_row
from app.jobs.schemas import JobCounts, JobPage, JobRowPage
from app.jobs.service import Jobs
from app.jobs.views import job_view, queue_view

router = APIRouter(prefix="/jobs", tags=["jobs"])
NEWEST = "-created_at"


@router.get(
    "",
    response_model=JobPage | JobRowPage,
    responses=documented(InvalidCursorError, TooManyLabelsError, UnknownFilterError),
)
def list_jobs(
    request: Request,
    jobs: Jobs,
    caller: Reader,
    chosen: Chosen,
    limit: Limit = 20,
    after: Cursor = None,
    sort: Sort = NEWEST,
    view: Shape = "whole",
) -> Response:
    """List jobs, newest first; `label.NAME=VALUE` shows those with a label."""
    order = order_of(sort)
    position = None if not after else Position(*cursor.decode(after, _kind(order), _name(order)))
    with jobs.database.read() as session:
        found = job_page(
            session, caller.tenant, chosen, limit=limit + 1, order=order, after=position
        )
        shown = found[:limit]
        waits = any(job.status == JobStatus.QUEUED for job in shown)
        places = queue_places(session) if waits else {}
    more = None
    if len(found) > limit:
        last = position_of(shown[-1], order)
        more = cursor.encode(last.value, last.id, _name(order))
    page: JobPage | JobRowPage
    if view == "row":
        rows = [job_row(job, places) for job in shown]
        page = JobRowPage(data=rows, has_more=more is not None, next_cursor=more)
    else:
        views = [job_view(job, queue_view(places.get(job.id))) for job in shown]
        page = JobPage(data=views, has_more=more is not None, next_cursor=more)
    headers = {}
    if more is not None:
        headers["Link"] = f'<{request.url.include_query_params(after=more)}>; rel="next"'
    return cached(request, page.model_dump(mode="json"), headers)


@router.get(
    "/counts",
    response_model=JobCounts,
    responses=documented(TooManyLabelsError, UnknownFilterError),
)
def count_jobs(request: Request, jobs: Jobs, caller: Reader, chosen: Chosen) -> Response:
    """How many jobs a filter finds, by status."""
    with jobs.database.read() as session:
        found = job_counts(session, caller.tenant, chosen)
    by_status = {status: found.get(status, 0) for status in JobStatus}
    counts = JobCounts(total=sum(found.values()), by_status=by_status)
    return cached(request, counts.model_dump(mode="json"), {})


@router.post("/batch", response_model=BatchResult, responses=documented(InvalidCursorError))
def change_jobs(jobs: Jobs, caller: Writer, body: BatchRequest) -> BatchResult:
    """Cancel, retry, delete or label many jobs, by their ids or by what they are."""
    return run_batch(jobs, caller, body)


def _name(order: Order) -> str:
    """As a cursor has it; the order that lists had before there were others has none."""
    sign = "-" if order.descending else ""
    name = f"{sign}{order.key}"
    return "" if name == NEWEST else name


def _kind(order: Order) -> type[Any]:
    python_type = COLUMNS[order.key].type.python_type
    return python_type if python_type in {float, str} else datetime
