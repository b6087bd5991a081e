"""uvicorn's HTTP protocol with an end to what comes before a body: httptools has a limit neither for size nor for time."""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

MAX_HEAD_BYTES = 64 << 10
HEAD_SECONDS = 20.0
ANSWER = (
    "HTTP/1.1 {status}\r\nContent-Type: application/problem+json\r\nContent-Length: {length}\r\n"
    "Connection: close\r\n\r\n{body}"
)
PROBLEM = '{{"title": "{title}", "status": {status}, "detail": "{detail}", "code": "{code}"}}'


class BoundedHead(HttpToolsProtocol):
    """Answers 431 to heads that are too long, and 408 to those that take too long."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._in_head = True
        self._head_bytes = 0
        self._patience: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A first request is to come."""
        super().connection_made(transport)
        self._time_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is over."""
        self._rest()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes of heads or bodies."""
        if self._in_head:
            self._head_bytes += len(data)
        super().data_received(data)
        if self._in_head and self._head_bytes > MAX_HEAD_BYTES:
            self._refuse(431, "Request Header Fields Too Large", "headers_too_large",
                         f"URL and headers together may have {MAX_HEAD_BYTES} bytes")  # fmt: skip
        elif self._in_head and self._head_bytes:
            self._time_head()

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, or a trailer behind a body in chunks: nobody here reads those, and they have no end."""
        if self._in_head:
            super().on_header(name, value)
        else:
            self.transport.close()

    def on_headers_complete(self) -> None:
        """From here on the application watches (`RequestFrame`)."""
        self._in_head, self._head_bytes = False, 0
        self._rest()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """What comes next is another head."""
        self._in_head = True
        super().on_message_complete()

    def _time_head(self) -> None:
        if self._patience is None and not self.transport.is_closing():
            self._patience = self.loop.call_later(HEAD_SECONDS, self._give_up)

    def _give_up(self) -> None:
        self._patience = None
        if self._is_answering() or self.flow.read_paused:
            self._time_head()  # the client waits for us, or for the answer before this head's
        else:
            self._refuse(408, "Request Timeout", "headers_too_slow",
                         f"the headers took more than {HEAD_SECONDS:g} s")  # fmt: skip

    def _refuse(self, status: int, title: str, code: str, detail: str) -> None:
        """Answer without the application, which has seen nothing of this, and close."""
        self._rest()
        if self.transport.is_closing():
            return
        if self._is_answering():
            self.transport.close()  # a second answer inside of the first would be read as a part of it
            return
        body = PROBLEM.format(title=title, status=status, detail=detail, code=code)
        answer = ANSWER.format(status=f"{status} {title}", length=len(body), body=body)
        self.transport.write(answer.encode("ascii"))
        self.transport.close()

    def _is_answering(self) -> bool:
        cycle: RequestResponseCycle | None = self.cycle  # None before the first request
        return cycle is not None and not cycle.response_complete

    def _rest(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
