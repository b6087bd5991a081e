"""Answers of the routes for jobs: headers, entity tags, pages."""

import gzip
import hashlib
import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TypeVar

from fastapi import Request, Response, status
from fastapi.responses import JSONResponse

from app.db.jobs import Glance
from app.db.models import Job
from app.db.waiting_jobs import QueuePlace
from app.domain.job_status import TERMINAL
from app.http.problems import rate_headers
from app.http.view import View
from app.jobs.repeated import Accepted
from app.jobs.schemas import Listing
from app.jobs.views import job_view, queue_view

Item = TypeVar("Item", bound=View)
QUICK_POLL_SECONDS, POLL_SECONDS, SLOW_POLL_SECONDS = 2, 5, 15
YOUNG_SECONDS, OLD_SECONDS = 60, 600
NO_CACHE = "private, no-cache"
WORTH_COMPRESSING = 1400
"""Bytes; less fits into a packet."""


def accepted(answer: Accepted) -> JSONResponse:
    """202 with the job, and how often the key may still submit."""
    job, rate = answer.document, answer.rate
    headers = {
        "ETag": f'"{job["version"]}"',
        "Cache-Control": NO_CACHE,
        "Location": job["urls"]["self"],
        "Retry-After": str(QUICK_POLL_SECONDS),
        **rate_headers(rate.allowed, rate.remaining, rate.reset_seconds),
    }
    if answer.replayed:
        headers["Idempotent-Replayed"] = "true"
    return JSONResponse(job, status.HTTP_202_ACCEPTED, headers)


def etag_of(job: Job | Glance) -> str:
    """A job's version as an entity tag."""
    return f'"{job.version}"'


def job_headers(job: Job | Glance) -> dict[str, str]:
    """What goes with a job whether or not its body does."""
    headers = {"ETag": etag_of(job), "Cache-Control": NO_CACHE, "Location": f"/jobs/{job.id}"}
    if job.status not in TERMINAL:
        headers["Retry-After"] = str(_poll_seconds(job))
    return headers


def job_answer(
    job: Job, status_code: int, place: QueuePlace | None = None, **more: str
) -> Response:
    """A job with its headers."""
    headers = job_headers(job) | more
    text = job_view(job, queue_view(place)).model_dump_json()
    return Response(text, status_code, headers, "application/json")


def _poll_seconds(job: Job | Glance) -> int:
    """How soon a look is worth it: soon for young jobs, later for long ones."""
    age = (datetime.now(UTC) - (job.started_at or job.created_at)).total_seconds()
    if age < YOUNG_SECONDS:
        return QUICK_POLL_SECONDS
    return POLL_SECONDS if age < OLD_SECONDS else SLOW_POLL_SECONDS


def cached(request: Request, document: dict[str, Any], headers: dict[str, str]) -> Response:
    """Answer with an ETag over the content, or 304 when the client has it; compressed for who can read that."""
    text = json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()
    etag = f'"{hashlib.sha256(text).hexdigest()[:32]}"'
    headers |= {"ETag": etag, "Cache-Control": NO_CACHE, "Vary": "Accept-Encoding"}
    if etag in request.headers.get("if-none-match", ""):
        return Response(status_code=status.HTTP_304_NOT_MODIFIED, headers=headers)
    if len(text) >= WORTH_COMPRESSING and "gzip" in request.headers.get("accept-encoding", ""):
        text = gzip.compress(text, 5, mtime=0)
        headers["Content-Encoding"] = "gzip"
    return Response(text, headers=headers, media_type="application/json")


def listing(
    rows: list[Any], view: type[Item], limit: int, after: int, number: Callable[[Any], int]
) -> Listing[Item]:
    """A page of rows, of which there is one more than the page takes if there are more."""
    shown = rows[:limit]
    return Listing[Item](
        data=[view.model_validate(row) for row in shown],
        has_more=len(rows) > limit,
        next_after=number(shown[-1]) if shown else after,
    )
