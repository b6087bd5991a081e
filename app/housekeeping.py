"""Background work of the API process: send doorbells, free lost jobs. Several processes may do it."""

import math
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from kombu.exceptions import KombuError
from redis.exceptions import RedisError
from sqlalchemy.exc import SQLAlchemyError

from app.db.housekeeping import (
    due_messages,
    fail_overdue_jobs,
    free_lost_jobs,
    mark_sent,
    postpone,
    ring_forgotten_jobs,
)
from app.db.idempotency import forget_old_answers
from app.db.quotas import forget_old_windows
from app.db.retention import (
    Retention,
    expire_artifacts,
    expire_history,
    expire_jobs,
    forget_secrets_of_ended_jobs,
)
from app.db.session import Database
from app.db.tallies import LEASES_LOST, count
from app.db.webhooks import forget_old_deliveries
from app.db.workers import forget_absent_workers
from app.queue import JobQueue
from app.telemetry import OUTBOX_FAILURES, log
from app.workspace import drop_artifact, drop_ended, drop_orphans

EXPIRY_SECONDS = 600.0
BREATH_SECONDS = 0.25
"""At least so long between the starts of two rounds: many doorbells go out together, and a first one at once."""


@dataclass(slots=True)
class Housekeeper:
    """A thread that wakes up on demand, and at least every `pause_seconds`."""

    database: Database
    queue: JobQueue
    pause_seconds: float
    sweep_seconds: float
    ring_again_seconds: float
    artifact_dir: Path | None = None
    """Where folders of unfinished jobs are, whose workers may be gone when they end."""
    retention: Retention = field(default_factory=Retention)
    _wake: threading.Event = field(default_factory=threading.Event)
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin."""
        self._thread = threading.Thread(target=self._run, name="housekeeping", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """There is a new doorbell."""
        self._wake.set()

    def stop(self) -> None:
        """End after the current round."""
        self._stop.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(timeout=15)

    def _run(self) -> None:
        last_sweep = last_expiry = -math.inf
        while not self._stop.is_set():
            begun = time.monotonic()
            try:
                if time.monotonic() - last_sweep >= self.sweep_seconds:
                    last_sweep = time.monotonic()
                    self.sweep()
                if time.monotonic() - last_expiry >= EXPIRY_SECONDS:
                    last_expiry = time.monotonic()
                    self.expire()
                self.relay()
            except SQLAlchemyError as error:
                # The database is away; every fact is in it, so there is nothing to do but wait.
                log.warning("housekeeping_waits", error=type(error).__name__)
            except Exception as error:  # noqa: BLE001  the edge of a thread: without it no job would start
                log.error("housekeeping_bug", exc_info=error)
            self._wake.wait(self.pause_seconds)
            self._stop.wait(begun + BREATH_SECONDS - time.monotonic())
            self._wake.clear()

    def sweep(self) -> None:
        """Free jobs of dead attempts, and ring for jobs whose doorbell was lost."""
        lost = free_lost_jobs(self.database)
        if lost:
            count(self.database, LEASES_LOST.more(amount=lost))
            log.warning("lost_jobs_freed", count=lost)
        fail_overdue_jobs(self.database)
        forget_old_answers(self.database)
        forget_old_windows(self.database)
        forget_old_deliveries(self.database)
        forget_absent_workers(self.database)
        forget_secrets_of_ended_jobs(self.database)
        ring_forgotten_jobs(self.database, self.ring_again_seconds)
        if self.artifact_dir is not None:
            try:
                drop_ended(self.database, self.artifact_dir)
            except OSError as error:  # a folder that cannot be removed must not stop the rest
                log.warning("leftovers_stay", error=str(error))

    def expire(self) -> None:
        """Forget what is older than its owner wants to keep; a batch of each kind, more the next time."""
        keep = self.retention
        gone = []
        if keep.artifact_days is not None:
            gone += expire_artifacts(self.database, keep.artifact_days)
        expire_history(self.database, keep)
        if keep.job_days is not None:
            gone += expire_jobs(self.database, keep.job_days)
        if self.artifact_dir is not None:
            for job_id in gone:
                drop_artifact(self.artifact_dir, job_id)
            drop_orphans(self.database, self.artifact_dir)
        if gone:
            log.info("expired", jobs=len(gone))

    def relay(self) -> None:
        """Send due doorbells. A crash between sending and commit rings twice, which is harmless."""
        with self.database.write() as session:
            sent = []
            for message in due_messages(session):
                try:
                    self.queue.ring(message.job_id)
                except (KombuError, RedisError, OSError) as error:
                    OUTBOX_FAILURES.inc()
                    log.warning("broker_unavailable", error=type(error).__name__)
                    postpone(session, message)
                    break  # the broker is away: keep the other rows for the next round
                sent.append(message)
            if sent:
                mark_sent(session, sent)
