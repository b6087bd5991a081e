"""Waiting for a job's news over HTTP: long polls, and what its event stream looks at."""

import asyncio
import re
import time
from collections.abc import Callable, Iterator
from functools import partial

from starlette.concurrency import run_in_threadpool

from app.db.jobs import Glance, JobRepository
from app.db.models import JobEvent, JobLogLine
from app.domain.errors import JobNotFoundError
from app.domain.job_status import TERMINAL
from app.http.event_stream import LOOK_SECONDS, PAGE, News, StreamedEvent
from app.jobs.schemas import EventView, LogLineView
from app.jobs.service import JobService

LONGEST_WAIT_SECONDS = 60
LINES = 1000
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


def log_news(jobs: JobService, tenant: str, job_id: str, after: int) -> News:
    """Lines of a job's log behind a number; the status is looked at first."""
    try:
        job = jobs.glance(tenant, job_id)
        rows: list[JobLogLine] = jobs.read(
            tenant, lambda repo: repo.log_lines(job_id, after=after, limit=PAGE)
        )
    except JobNotFoundError:
        return News([], ended=True)
    lines = [
        StreamedEvent(row.id, "log", LogLineView.model_validate(row).model_dump_json())
        for row in rows
    ]
    return News(lines, job.status in TERMINAL)


def log_text(jobs: JobService, tenant: str, job_id: str, after: int) -> Iterator[str]:
    """A job's log as text, a page at a time."""
    while True:
        try:
            rows: list[JobLogLine] = jobs.read(
                tenant, partial(JobRepository.log_lines, job_id=job_id, after=after, limit=LINES)
            )
        except JobNotFoundError:
            return
        if not rows:
            return
        after = rows[-1].id
        yield "".join(
            f"{row.at.isoformat(timespec='seconds')} [{row.attempt}] {row.text}\n" for row in rows
        )


def job_news(jobs: JobService, tenant: str, job_id: str, after: int) -> News | None:
    """A job's events behind a number. The status is looked at first: what ended the job is then among the events."""
    try:
        job = jobs.glance(tenant, job_id)
        rows: list[JobEvent] = []
        if job.last_event > after:
            rows = jobs.read(tenant, lambda repo: repo.events(job_id, after=after, limit=PAGE))
    except JobNotFoundError:
        return None  # deleted meanwhile
    events = [
        StreamedEvent(row.seq, row.type, EventView.model_validate(row).model_dump_json())
        for row in rows
    ]
    return News(events, job.status in TERMINAL)
