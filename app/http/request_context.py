"""What is done around every request: its id, what is refused unread, and headers of every answer."""

import asyncio
import re
import secrets
from dataclasses import dataclass

import structlog
from fastapi import Request
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.http.problems import problem

BODY_SECONDS = 20.0
REQUEST_ID = re.compile(r"[A-Za-z0-9_.\-]{1,64}")
SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
}


@dataclass(frozen=True, slots=True)
class RequestFrame:
    """ASGI middleware. Plain ASGI, as Starlette's `@app.middleware` costs two more tasks a request."""

    app: ASGIApp
    max_body_bytes: int

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request = Request(scope)
        asked = request.headers.get("x-request-id", "")
        request_id = asked if REQUEST_ID.fullmatch(asked) else f"req_{secrets.token_hex(8)}"
        request.state.request_id = request_id
        structlog.contextvars.bind_contextvars(request_id=request_id)

        async def send_framed(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = request_id
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        answer = _refusal(request, self.max_body_bytes)
        if answer is None and int(request.headers.get("content-length") or 0):
            try:
                receive = await _whole_body(receive)
            except TimeoutError:
                detail = f"the body did not come within {BODY_SECONDS:g} seconds"
                answer = problem(request, 408, "request_timeout", detail)
        await (answer or self.app)(scope, receive, send_framed)


async def _whole_body(receive: Receive) -> Receive:
    """Wait for the body, which is small, so that no slow client holds a thread or a transaction.

    Raises:
        TimeoutError: it did not come in time.
    """
    parts: list[Message] = []
    async with asyncio.timeout(BODY_SECONDS):
        while not parts or parts[-1].get("more_body", False):
            parts.append(await receive())

    async def replayed() -> Message:
        return parts.pop(0) if parts else await receive()

    return replayed


def _refusal(request: Request, max_bytes: int) -> ASGIApp | None:
    """What is refused unread: NUL characters in the URL, bodies that are too large or do not say how large."""
    if b"%00" in request.scope.get("raw_path", b"") + request.scope["query_string"]:
        return problem(request, 400, "malformed_request", "the URL holds a NUL character")
    length = request.headers.get("content-length", "")
    if length and not (length.isascii() and length.isdigit()):
        return problem(request, 400, "malformed_request", "Content-Length is not a number")
    if length and int(length) > max_bytes:
        detail = f"the body has {length} bytes, at most {max_bytes} are taken"
        return problem(request, 413, "too_large", detail)
    if "transfer-encoding" in request.headers:
        return problem(request, 411, "length_required", "send the body with a Content-Length")
    return None
