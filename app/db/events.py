"""Append to a job's history without gaps, and tell its webhook."""

from typing import Any

from sqlalchemy import update
from sqlalchemy.orm import Session

from app.db.counters import JOBS_FINISHED, count
from app.db.models import Job, JobEvent
from app.db.session import afterwards, now
from app.db.webhooks import enqueue
from app.domain.job_status import TERMINAL


def append_event(session: Session, job: Job, kind: str, data: dict[str, Any]) -> None:
    """Add the next event of a job this transaction has updated or inserted.

    The row lock of that write orders concurrent appenders, so numbers have neither gap nor tie.
    """
    seq = session.scalar(
        update(Job)
        .where(Job.id == job.id)
        .values(last_event=Job.last_event + 1)
        .returning(Job.last_event)
        .execution_options(synchronize_session=False)
    )
    if kind == "status":
        enqueue(session, job, data["status"])
        if data["status"] in TERMINAL:
            code = (data.get("error") or {}).get("code", "")
            ended = JOBS_FINISHED.more(data["status"], code)
            afterwards(session, lambda database: count(database, ended))
    session.add(
        JobEvent(job_id=job.id, seq=seq, at=now(session), attempt=job.attempt, type=kind, data=data)
    )
