"""Liveness, readiness, metrics."""

import math
import threading
import time
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from app.auth import database_of
from app.db.migrate import at_head
from app.db.models import Job, OutboxMessage, WebhookDelivery
from app.db.session import Database, now
from app.domain.job_status import JobStatus
from app.telemetry import (
    FAILED_LATELY,
    JOBS,
    OUTBOX_LAG,
    OUTBOX_PENDING,
    QUEUE_AGE,
    WEBHOOKS_PENDING,
)

router = APIRouter(tags=["health"])
KEPT_SECONDS = 10.0


@router.get("/livez")
def livez() -> dict[str, str]:
    """The process answers; nothing else is checked."""
    return {"status": "ok"}


@router.get("/readyz", responses={503: {"description": "The database is away or not migrated."}})
def readyz(request: Request) -> JSONResponse:
    """Whether jobs can be accepted. The broker is not needed for that: doorbells wait."""
    try:
        ready = at_head(database_of(request))
        detail = (
            "ok" if ready else "the database schema is not at the newest migration: run spq migrate"
        )
    except SQLAlchemyError as error:
        ready, detail = False, f"the database does not answer ({type(error).__name__})"
    body: dict[str, Any] = {"status": "ok" if ready else "unavailable", "database": detail}
    return JSONResponse(body, 200 if ready else 503)


@router.get("/metrics", response_class=PlainTextResponse)
def metrics(request: Request) -> Response:
    """Prometheus exposition; what concerns jobs comes from the database, at most every ten seconds."""
    gauges: JobGauges = request.app.state.gauges
    gauges.refresh()
    return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)


@dataclass(slots=True)
class JobGauges:
    """Gauges read from the database. Counting a large table takes a while, so scrapes share an answer."""

    database: Database
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _read_at: float = -math.inf

    def refresh(self) -> None:
        """Read anew what is older than `KEPT_SECONDS`."""
        with self._lock:
            if time.monotonic() - self._read_at < KEPT_SECONDS:
                return
            with self.database.read() as session:
                self._read(session)
            self._read_at = time.monotonic()

    def _read(self, session: Session) -> None:
        moment = now(session)
        counts = dict(session.execute(select(Job.status, func.count()).group_by(Job.status)).all())
        for status in JobStatus:
            JOBS.labels(status.value).set(counts.get(status.value, 0))
        oldest = session.scalar(
            select(func.min(Job.created_at)).where(Job.status == JobStatus.QUEUED)
        )
        QUEUE_AGE.set((moment - oldest).total_seconds() if oldest else 0)
        pending, first = session.execute(
            select(func.count(), func.min(OutboxMessage.created_at)).select_from(OutboxMessage)
        ).one()
        OUTBOX_PENDING.set(pending)
        OUTBOX_LAG.set((moment - first).total_seconds() if pending else 0)
        waiting = select(func.count()).where(WebhookDelivery.next_try_at.is_not(None))
        WEBHOOKS_PENDING.set(session.scalar(waiting) or 0)
        FAILED_LATELY.clear()
        for (error,) in session.execute(
            select(Job.error).where(
                Job.status == JobStatus.FAILED, Job.finished_at > moment - timedelta(hours=1)
            )
        ):
            FAILED_LATELY.labels(error["code"]).inc()
