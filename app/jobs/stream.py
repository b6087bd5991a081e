"""Waiting for a job's news over HTTP: long polls, and its events as a stream (Server-Sent Events)."""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable

from fastapi.sse import format_sse_event
from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool

from app.db.jobs import Glance
from app.db.keys import Principal
from app.db.models import JobEvent
from app.db.session import is_away
from app.domain.errors import JobNotFoundError
from app.domain.job_status import TERMINAL
from app.jobs.schemas import EventView
from app.jobs.service import JobService

LOOK_SECONDS = 0.5
PING_SECONDS = 15.0
RECONNECT_MILLISECONDS = 3000
PAGE = 100
LONGEST_STREAM_SECONDS = 300.0
LONGEST_WAIT_SECONDS = 60
_WAIT = re.compile(r"(?:^|[,;\s])wait\s*=\s*(\d{1,4})(?:$|[,;\s])")


def wanted_wait(prefer: str) -> int:
    """Seconds that a Prefer header asks to wait (RFC 7240), at most a minute; 0 without one."""
    found = _WAIT.search(prefer)
    return min(int(found[1]), LONGEST_WAIT_SECONDS) if found else 0


async def changed(look: Callable[[], Glance], known_version: int | None, seconds: float) -> Glance:
    """The job once its version is another than the known one, or it has ended, or time is up."""
    deadline = time.monotonic() + seconds
    job = await run_in_threadpool(look)
    known = job.version if known_version is None else known_version
    while job.version == known and job.status not in TERMINAL and time.monotonic() < deadline:
        await asyncio.sleep(min(LOOK_SECONDS, max(0.0, deadline - time.monotonic())))
        job = await run_in_threadpool(look)
    return job


async def event_stream(
    jobs: JobService, caller: Principal, job_id: str, after: int
) -> AsyncIterator[bytes]:
    """A job's events with a number above `after`, as they come; ends with the job.

    Also ends after `LONGEST_STREAM_SECONDS`, and when the database or a place to wait is missing: clients come
    back by themselves, and show their key again.
    """
    yield format_sse_event(retry=RECONNECT_MILLISECONDS)
    with jobs.waiting.place(caller.key_id) as free:
        if free:
            try:
                async for event in _events(jobs, caller.tenant, job_id, after):
                    yield event
            except SQLAlchemyError as error:
                if not is_away(error):
                    raise


async def _events(jobs: JobService, tenant: str, job_id: str, after: int) -> AsyncIterator[bytes]:
    end = time.monotonic() + LONGEST_STREAM_SECONDS
    last_sent = time.monotonic()
    while time.monotonic() < end:
        try:
            job, rows = await run_in_threadpool(_look, jobs, tenant, job_id, after)
        except JobNotFoundError:
            return  # deleted meanwhile
        for row in rows:
            after = row.seq
            yield format_sse_event(
                data_str=EventView.model_validate(row).model_dump_json(), event=row.type, id=str(after)
            )  # fmt: skip
        if len(rows) == PAGE:
            continue
        if job.status in TERMINAL:
            return
        if rows:
            last_sent = time.monotonic()
        elif time.monotonic() - last_sent > PING_SECONDS:
            last_sent = time.monotonic()
            yield format_sse_event(comment="ping")
        await asyncio.sleep(LOOK_SECONDS)


def _look(jobs: JobService, tenant: str, job_id: str, after: int) -> tuple[Glance, list[JobEvent]]:
    """The status first: what ended the job is then among the events."""
    job = jobs.glance(tenant, job_id)
    if job.last_event <= after:
        return job, []
    return job, jobs.read(tenant, lambda repo: repo.events(job_id, after=after, limit=PAGE))
