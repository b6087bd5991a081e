"""Events as they happen (Server-Sent Events), of whatever has numbered events and an end."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import NamedTuple

from fastapi import Response, status
from fastapi.responses import StreamingResponse
from fastapi.sse import format_sse_event
from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool

from app.db.session import is_away
from app.domain.errors import TooManyStreamsError
from app.http.waiting import WaitingRoom

LOOK_SECONDS = 0.5
PING_SECONDS = 15.0
RECONNECT_MILLISECONDS = 3000
PAGE = 100
LONGEST_STREAM_SECONDS = 300.0


class StreamedEvent(NamedTuple):
    """One event."""

    number: int
    type: str
    json: str


class News(NamedTuple):
    """What happened since a look before."""

    events: Sequence[StreamedEvent]
    """`PAGE` at most."""
    ended: bool
    """Nothing will happen any more."""


def streamed(
    waiting: WaitingRoom, key_id: str, look: Callable[[int], News | None], after: int, *, over: bool
) -> Response:
    """The answer to a request for a stream.

    Args:
        over: nothing will come behind `after` any more, which clients are told so that they do not come back.

    Raises:
        TooManyStreamsError: there is no place to wait.
    """
    if over:
        return Response(status_code=status.HTTP_204_NO_CONTENT)
    if waiting.is_full(key_id):
        raise TooManyStreamsError
    return StreamingResponse(
        event_stream(waiting, key_id, look, after),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
    )


async def event_stream(
    waiting: WaitingRoom, key_id: str, look: Callable[[int], News | None], after: int
) -> AsyncIterator[bytes]:
    """Events with a number above `after`, as they come; ends with what they are of.

    Also ends after `LONGEST_STREAM_SECONDS`, and when the database or a place to wait is missing: clients come
    back by themselves, and show their key again.

    Args:
        look: asks the database for what is behind a number; None when it is gone.
    """
    yield format_sse_event(retry=RECONNECT_MILLISECONDS)
    with waiting.place(key_id) as free:
        if free:
            try:
                async for event in _events(look, after):
                    yield event
            except SQLAlchemyError as error:
                if not is_away(error):
                    raise


async def _events(look: Callable[[int], News | None], after: int) -> AsyncIterator[bytes]:
    end = time.monotonic() + LONGEST_STREAM_SECONDS
    last_sent = time.monotonic()
    while time.monotonic() < end:
        news = await run_in_threadpool(look, after)
        if news is None:
            return
        for event in news.events:
            after = event.number
            yield format_sse_event(data_str=event.json, event=event.type, id=str(after))
        if len(news.events) == PAGE:
            continue
        if news.ended:
            return
        if news.events:
            last_sent = time.monotonic()
        elif time.monotonic() - last_sent > PING_SECONDS:
            last_sent = time.monotonic()
            yield format_sse_event(comment="ping")
        await asyncio.sleep(LOOK_SECONDS)
