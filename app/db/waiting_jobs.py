"""Who waits for a worker, behind whom, and for about how long."""

import heapq
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from statistics import median
from typing import NamedTuple

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.db.models import Job
from app.db.session import now
from app.db.workers import present_workers
from app.domain.job_status import OWNED, JobStatus

MOST_LOOKED_AT = 2000
RECENT = 20
"""Jobs whose length says how long others will take."""


class QueuePlace(NamedTuple):
    """Of one queued job, among those of all tenants."""

    position: int
    """From 1."""
    running: int
    """Jobs that workers are busy with."""
    workers: int
    estimated_start_at: datetime | None
    """None where nothing tells: no worker is there, or nobody knows when they will be free."""


def queue_places(session: Session) -> dict[str, QueuePlace]:
    """By id, the places of queued jobs, oldest first; of very many, those of the first."""
    waiting = _waiting(session)
    starts = _starts(session, len(waiting)) if waiting else []
    return dict(zip(waiting, starts, strict=True))


def next_place(session: Session) -> QueuePlace:
    """Where a job would be that is submitted now."""
    return _starts(session, len(_waiting(session)) + 1)[-1]


def _waiting(session: Session) -> list[str]:
    return list(
        session.scalars(
            select(Job.id)
            .where(Job.status == JobStatus.QUEUED)
            .order_by(Job.created_at, Job.id)
            .limit(MOST_LOOKED_AT)
        )
    )


def _starts(session: Session, waiting: int) -> list[QueuePlace]:
    running = list(session.execute(select(Job.progress).where(Job.status.in_(OWNED))).scalars())
    workers = len(present_workers(session))
    moment = now(session)
    ends = [_end(progress) for progress in running]
    starts = expected_starts(waiting, workers, ends, _usual_length(session), moment)
    return [
        QueuePlace(at, len(running), workers, start) for at, start in enumerate(starts, start=1)
    ]


def expected_starts(
    waiting: int,
    workers: int,
    ends: Sequence[datetime | None],
    length: timedelta | None,
    moment: datetime,
) -> list[datetime | None]:
    """When each of some jobs that wait will begin, if workers take them in their order.

    Args:
        ends: of the jobs that run; None where nobody knows.
        length: of a job that waits; None where nobody knows.
    """
    if any(end is None for end in ends) or not workers:
        free_now = max(0, workers - len(ends))
        return [moment if at < free_now else None for at in range(waiting)]
    free = [max(moment, end) for end in ends if end is not None][:workers]
    free += [moment] * max(0, workers - len(free))
    heapq.heapify(free)
    found: list[datetime | None] = []
    for at in range(waiting):
        if length is None and at >= workers:
            found.append(None)
            continue
        begins = heapq.heappop(free)
        found.append(begins)
        heapq.heappush(free, begins + (length or timedelta()))
    return found


def _end(progress: Mapping[str, str] | None) -> datetime | None:
    told = (progress or {}).get("estimated_finish_at")
    return None if told is None else datetime.fromisoformat(told)


def _usual_length(session: Session) -> timedelta | None:
    """Of jobs that succeeded lately."""
    query = (
        select(Job.started_at, Job.finished_at)
        .where(Job.status == JobStatus.SUCCEEDED)
        .order_by(Job.created_at.desc())
        .limit(RECENT)
    )
    spans = [(row.started_at, row.finished_at) for row in session.execute(query)]
    lengths = [end - begin for begin, end in spans if begin is not None and end is not None]
    seconds = [length.total_seconds() for length in lengths]
    return timedelta(seconds=median(seconds)) if seconds else None
