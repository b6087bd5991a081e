"""Routes for sweeps."""

import csv
import io
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Request, Response, status
from fastapi.responses import JSONResponse

from app.db.sweep_models import SweepMember, SweepRow
from app.domain.errors import (
    IdempotencyKeyReusedError,
    QuotaExceededError,
    TokensDisabledError,
    TooManyStreamsError,
    UnsafeWebhookError,
)
from app.domain.naming_errors import (
    InvalidCursorError,
    ModelNotAllowedError,
    UnknownDatasetError,
    UnknownTaskError,
)
from app.domain.sweep_errors import (
    SweepActiveError,
    SweepEndedError,
    SweepNotFoundError,
    SweepNotRetryableError,
)
from app.domain.sweep_status import ENDED, SweepStatus
from app.http.auth import Reader, Writer
from app.http.event_stream import streamed
from app.http.problems import documented
from app.jobs.answers import NO_CACHE, QUICK_POLL_SECONDS, accepted, cached, listing
from app.jobs.parameters import After, Cursor, IdempotencyKey, LastEventId, Limit, LongLimit
from app.jobs.schemas import Listing
from app.sweeps.schemas import (
    SweepChange,
    SweepEventView,
    SweepPage,
    SweepPlan,
    SweepSubmission,
    SweepView,
)
from app.sweeps.service import SweepService
from app.sweeps.views import sweep_summary, sweep_url, sweep_view
from spq_core.errors import ArtifactError, RecipeError, UnsafeModelError, UnsupportedModelError
from spq_core.hub.errors import HubError
from spq_core.sweep.tables import write_table

router = APIRouter(prefix="/sweeps", tags=["sweeps"])
SweepId = Annotated[str, Path(description="A sweep's `id`.")]
DryRun = Annotated[
    bool, Query(description="Only answer what its members would be, and what each would take.")
]


async def _service(request: Request) -> SweepService:
    service: SweepService = request.app.state.sweeps
    return service


Sweeps = Annotated[SweepService, Depends(_service)]


@router.post(
    "",
    status_code=status.HTTP_202_ACCEPTED,
    response_model=SweepView,
    responses={
        200: {"model": SweepPlan, "description": "With `dry_run`."},
        **documented(
            RecipeError, ModelNotAllowedError, UnknownDatasetError, UnknownTaskError, UnsafeWebhookError,
            TokensDisabledError, QuotaExceededError, ArtifactError, UnsafeModelError, UnsupportedModelError,
            HubError, IdempotencyKeyReusedError,
        ),
    },
)  # fmt: skip
def submit_sweep(
    body: SweepSubmission,
    sweeps: Sweeps,
    caller: Writer,
    key: IdempotencyKey = None,
    dry_run: DryRun = False,  # noqa: FBT002 - a query parameter
) -> JSONResponse:
    """Accept a sweep: many recipes on one model, each an ordinary job, and which of them are worth taking.

    One member runs first; figures of the source and of plain INT8 are measured with it and serve the others,
    which then run `max_parallel` at a time on all workers. All are made of one commit of the model.
    """
    if dry_run:
        return JSONResponse(sweeps.plan(caller, body).model_dump(mode="json"))
    return accepted(sweeps.submit(caller, body, key))


@router.get("", response_model=SweepPage, responses=documented(InvalidCursorError))
def list_sweeps(
    request: Request, sweeps: Sweeps, caller: Reader, limit: Limit = 20, after: Cursor = None
) -> Response:
    """List sweeps, newest first."""
    found, more = sweeps.page(caller.tenant, limit=limit, after=after)
    page = SweepPage(
        data=[sweep_summary(*one) for one in found], has_more=more is not None, next_cursor=more
    )
    return cached(request, page.model_dump(mode="json"), {})


@router.get("/{sweep_id}", response_model=SweepView, responses=documented(SweepNotFoundError))
def get_sweep(request: Request, sweep_id: SweepId, sweeps: Sweeps, caller: Reader) -> Response:
    """Show one sweep. Send the ETag back as If-None-Match: an unchanged sweep costs no body."""
    known = request.headers.get("if-none-match", "")
    if f'"{sweeps.glance(caller.tenant, sweep_id).version}"' in known:
        return Response(status_code=status.HTTP_304_NOT_MODIFIED)
    return _answer(*sweeps.get(caller.tenant, sweep_id))


@router.post(
    "/{sweep_id}/cancel", response_model=SweepView, responses=documented(SweepNotFoundError)
)
def cancel_sweep(sweep_id: SweepId, sweeps: Sweeps, caller: Writer) -> Response:
    """Stop a sweep: members that run are asked to stop, others are not made; figures stay."""
    return _answer(*sweeps.set_status(caller.tenant, sweep_id, SweepStatus.CANCELING))


@router.post(
    "/{sweep_id}/pause",
    response_model=SweepView,
    responses=documented(SweepNotFoundError, SweepEndedError),
)
def pause_sweep(sweep_id: SweepId, sweeps: Sweeps, caller: Writer) -> Response:
    """Make no more members until it is resumed; those on their way go on."""
    return _answer(*sweeps.set_status(caller.tenant, sweep_id, SweepStatus.PAUSED))


@router.post(
    "/{sweep_id}/resume",
    response_model=SweepView,
    responses=documented(SweepNotFoundError, SweepEndedError),
)
def resume_sweep(sweep_id: SweepId, sweeps: Sweeps, caller: Writer) -> Response:
    """Go on with a paused sweep."""
    return _answer(*sweeps.set_status(caller.tenant, sweep_id, SweepStatus.RUNNING))


@router.post(
    "/{sweep_id}/retry",
    response_model=SweepView,
    responses=documented(SweepNotFoundError, SweepEndedError, SweepNotRetryableError),
)
def retry_sweep(sweep_id: SweepId, sweeps: Sweeps, caller: Writer) -> Response:
    """Try members again that failed, were canceled, or were skipped when the sweep stopped; in their places."""
    return _answer(*sweeps.retry(caller.tenant, sweep_id))


@router.patch(
    "/{sweep_id}",
    response_model=SweepView,
    responses=documented(
        SweepNotFoundError, SweepEndedError, SweepNotRetryableError, RecipeError, UnknownDatasetError,
        UnknownTaskError, ModelNotAllowedError, ArtifactError, UnsafeModelError, UnsupportedModelError,
        HubError, QuotaExceededError,
    ),
)  # fmt: skip
def change_sweep(sweep_id: SweepId, sweeps: Sweeps, caller: Writer, body: SweepChange) -> Response:
    """Change how many members run at a time, or the labels; add members, also to a sweep that has ended."""
    return _answer(*sweeps.change(caller.tenant, sweep_id, body))


@router.delete(
    "/{sweep_id}",
    status_code=status.HTTP_204_NO_CONTENT,
    responses=documented(SweepNotFoundError, SweepActiveError),
)
def delete_sweep(sweep_id: SweepId, sweeps: Sweeps, caller: Writer) -> None:
    """Forget a sweep that has ended; the jobs of its members stay."""
    sweeps.delete(caller.tenant, sweep_id)


@router.get(
    "/{sweep_id}/members.csv",
    response_class=Response,
    responses={200: {"content": {"text/csv": {}}}, **documented(SweepNotFoundError)},
)
def sweep_table(sweep_id: SweepId, sweeps: Sweeps, caller: Reader) -> Response:
    """A line a member: what sets it apart, how it ended, and every figure of it."""
    view = sweep_view(*sweeps.get(caller.tenant, sweep_id))
    content = io.StringIO()
    write_table(view.model_dump(mode="json"), csv.writer(content))
    name = f'attachment; filename="{sweep_id}.csv"'
    return Response(
        content.getvalue(), media_type="text/csv", headers={"Content-Disposition": name}
    )


@router.get(
    "/{sweep_id}/events",
    response_model=Listing[SweepEventView],
    responses={
        200: {"content": {"text/event-stream": {}}},
        204: {"description": "A stream of a sweep that has ended has nothing more."},
        **documented(SweepNotFoundError, TooManyStreamsError),
    },
)
def list_sweep_events(
    request: Request,
    sweep_id: SweepId,
    sweeps: Sweeps,
    caller: Reader,
    after: After = 0,
    limit: LongLimit = 100,
    last_event_id: LastEventId = None,
) -> Listing[SweepEventView] | Response:
    """The sweep's history: a `member` event whenever one changes, numbered without gaps.

    With `Accept: text/event-stream` it comes as it happens, until the sweep has ended; a stream that
    broke goes on behind `Last-Event-ID`.
    """
    if "text/event-stream" in request.headers.get("accept", ""):
        seen = sweeps.glance(caller.tenant, sweep_id)
        begin = after if last_event_id is None else last_event_id
        look = partial(sweeps.news, caller.tenant, sweep_id)
        over = seen.status in ENDED and begin >= seen.last_event
        return streamed(sweeps.waiting, caller.key_id, look, begin, over=over)
    rows = sweeps.events(caller.tenant, sweep_id, after=after, limit=limit + 1)
    return listing(rows, SweepEventView, limit, after, lambda row: row.seq)


def _answer(row: SweepRow, members: list[SweepMember]) -> Response:
    headers = {
        "ETag": f'"{row.version}"', "Cache-Control": NO_CACHE, "Location": sweep_url(row.id),
    }  # fmt: skip
    if row.status not in ENDED:
        headers["Retry-After"] = str(QUICK_POLL_SECONDS)
    return Response(
        sweep_view(row, members).model_dump_json(), headers=headers, media_type="application/json"
    )
