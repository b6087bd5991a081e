"""One stream of everything of a tenant that changes, for pages and watchers."""

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse

from app.domain.errors import TooManyStreamsError
from app.http.auth import Reader, database_of
from app.http.problems import documented
from app.jobs.service import Jobs
from app.live.changes import Watch
from app.live.stream import live_stream

router = APIRouter(tags=["events"])


@router.get(
    "/events",
    response_class=StreamingResponse,
    responses={
        200: {"content": {"text/event-stream": {}}},
        **documented(TooManyStreamsError),
    },
)
def stream_events(request: Request, jobs: Jobs, caller: Reader) -> Response:
    """Everything of the tenant, as it changes: one stream for a page that shows many jobs.

    `job`: a job's row, as `GET /jobs?view=row` has it, when its version changes, at most every two seconds.
    `sweep`: a sweep's summary. `workers`: how many are there and busy. `gone`: the id of a job that was deleted.
    A stream begins with `ready`; whoever comes back reads the list once more, and misses nothing.
    """
    if jobs.waiting.is_full(caller.key_id):
        raise TooManyStreamsError
    watch = Watch(database_of(request), caller.tenant)
    return StreamingResponse(
        live_stream(jobs.waiting, caller.key_id, watch.look),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
    )
