"""Downloads that can be gone on with (RFC 9110, section 14): one range of bytes at a time."""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple
from urllib.parse import quote

from fastapi.responses import Response, StreamingResponse

Content = Callable[[int, int], Iterator[bytes]]
"""A file's bytes from the first number to before the second."""


class Range(NamedTuple):
    """Bytes from `start` to before `stop`."""

    start: int
    stop: int


class UnsatisfiableRangeError(ValueError):
    """A range that begins behind the end."""


def asked_range(header: str | None, size: int) -> Range | None:
    """What a Range header asks for; None for all of it, also where there are many ranges or another unit.

    Raises:
        UnsatisfiableRangeError: no byte of the file is in it.
    """
    match = re.fullmatch(r"bytes=\s*(\d{0,19})-(\d{0,19})\s*", header or "")
    if match is None or match[1] == match[2] == "":
        return None
    if match[1] == "":  # the last so many
        start, stop = max(0, size - int(match[2])), size
    else:
        start, stop = int(match[1]), min(size, int(match[2]) + 1 if match[2] else size)
        if match[2] and int(match[2]) < start:
            return None
    if start >= size or start >= stop:
        raise UnsatisfiableRangeError
    return Range(start, stop)


def ranged(
    headers: Mapping[str, str], name: str, size: int, sha256: str, content: Content
) -> Response:
    """Serve a file, or the range of it that is asked for.

    Args:
        headers: of the request.
    """
    tag = f'"{sha256}"'
    answer = {
        "ETag": tag,
        "Accept-Ranges": "bytes",
        "X-Content-Type-Options": "nosniff",
        "Content-Disposition": _attachment(name),
    }
    if headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=answer)
    unchanged = headers.get("if-range") in (None, tag)
    try:
        part = asked_range(headers.get("range") if unchanged else None, size)
    except UnsatisfiableRangeError:
        return Response(status_code=416, headers=answer | {"Content-Range": f"bytes */{size}"})
    start, stop = part or (0, size)
    answer["Content-Length"] = str(stop - start)
    if part is not None:
        answer["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
    return StreamingResponse(
        content(start, stop), 200 if part is None else 206, answer, "application/octet-stream"
    )


def _attachment(name: str) -> str:
    quoted = quote(name, safe="")
    if quoted == name:
        return f'attachment; filename="{name}"'
    return f"attachment; filename*=utf-8''{quoted}"
