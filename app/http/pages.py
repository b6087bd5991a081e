"""The dashboard's files, with what browsers must know of them."""

import gzip
import hashlib
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from importlib.resources.abc import Traversable

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from app.http.problems import problem

router = APIRouter(include_in_schema=False)
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)
TYPES = {"html": "text/html", "js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}
PAGE = "index.html"


@dataclass(frozen=True, slots=True)
class PageFile:
    """A file in memory, as it is and compressed."""

    content: bytes
    compressed: bytes
    etag: str
    media_type: str


@cache
def page_files() -> dict[str, PageFile]:
    """All files of the dashboard, by path."""
    return dict(_found(files("app") / "dashboard", ""))


def _found(folder: Traversable, prefix: str) -> list[tuple[str, PageFile]]:
    found: list[tuple[str, PageFile]] = []
    for entry in folder.iterdir():
        if entry.is_dir():
            found += _found(entry, f"{prefix}{entry.name}/")
        elif (ending := entry.name.rpartition(".")[2]) in TYPES:
            content = entry.read_bytes()
            etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
            packed = gzip.compress(content, mtime=0)
            found.append((f"{prefix}{entry.name}", PageFile(content, packed, etag, TYPES[ending])))
    return found


@router.api_route("/", methods=["GET", "HEAD"])
def root() -> Response:
    """Where people begin."""
    return RedirectResponse("/ui/")


@router.api_route("/ui", methods=["GET", "HEAD"])
def without_slash() -> Response:
    """Relative addresses of the page need the slash."""
    return RedirectResponse("/ui/")


@router.api_route("/ui/{path:path}", methods=["GET", "HEAD"])
def page(request: Request, path: str) -> Response:
    """A file of the dashboard; every other address is one of its views, which the page makes itself."""
    known = page_files()
    if path.startswith("assets/"):
        found = known.get(path.removeprefix("assets/"))
        if found is None:
            return problem(
                request, 404, "not_found", f"there is nothing at {request.url.path[:200]}"
            )
    else:
        found = known[PAGE]
    headers = {
        "Cache-Control": "no-cache", "ETag": found.etag, "Content-Security-Policy": POLICY,
        "Vary": "Accept-Encoding", "X-Spq-Version": version("spq"),
    }  # fmt: skip
    if found.etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    content = found.content
    if "gzip" in request.headers.get("accept-encoding", ""):
        content, headers["Content-Encoding"] = found.compressed, "gzip"
    return Response(content, headers=headers, media_type=found.media_type)
