"""Changes as they are seen (Server-Sent Events)."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence

from fastapi.sse import format_sse_event
from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool

from app.db.session import is_away
from app.http.event_stream import LONGEST_STREAM_SECONDS, PING_SECONDS, RECONNECT_MILLISECONDS
from app.http.waiting import WaitingRoom
from app.live.changes import Change

LOOK_SECONDS = 2.0
"""The state of a job is shown at most so often."""


async def live_stream(
    waiting: WaitingRoom, key_id: str, look: Callable[[], Sequence[Change]]
) -> AsyncIterator[bytes]:
    """What `look` finds, again and again; ends after a while, and where the database or a place to wait is missing."""
    yield format_sse_event(retry=RECONNECT_MILLISECONDS)
    with waiting.place(key_id) as free:
        if not free:
            return
        try:
            async for event in _events(look):
                yield event
        except SQLAlchemyError as error:
            if not is_away(error):
                raise


async def _events(look: Callable[[], Sequence[Change]]) -> AsyncIterator[bytes]:
    end = time.monotonic() + LONGEST_STREAM_SECONDS
    last_sent = time.monotonic()
    for change in await run_in_threadpool(look):
        yield format_sse_event(data_str=change.json, event=change.type)
    yield format_sse_event(data_str="{}", event="ready")
    while time.monotonic() < end:
        await asyncio.sleep(LOOK_SECONDS)
        changes = await run_in_threadpool(look)
        for change in changes:
            yield format_sse_event(data_str=change.json, event=change.type)
        if changes:
            last_sent = time.monotonic()
        elif time.monotonic() - last_sent > PING_SECONDS:
            last_sent = time.monotonic()
            yield format_sse_event(comment="ping")
