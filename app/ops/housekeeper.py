"""Background work of the API process: send outbox messages, free lost jobs. Several processes may do it."""

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from kombu.exceptions import KombuError
from redis.exceptions import RedisError

from app.artifacts.leftovers import drop_ended, drop_late, drop_unclaimed
from app.artifacts.store import ArtifactStore
from app.db.browser_sessions import forget_ended_sessions
from app.db.counters import LEASES_LOST, count
from app.db.idempotency import forget_old_answers
from app.db.known_figures import forget_figures
from app.db.models import OutboxMessage
from app.db.quotas import forget_old_windows
from app.db.recovery import (
    fail_overdue_jobs,
    free_lost_jobs,
    mark_sent,
    notify_forgotten_jobs,
    postpone,
    take_due_messages,
)
from app.db.retention import (
    Retention,
    expire_artifacts,
    expire_history,
    expire_jobs,
    forget_secrets_of_ended_jobs,
)
from app.db.session import Database, is_away
from app.db.webhooks import forget_old_deliveries
from app.db.workers import forget_absent_workers
from app.domain.errors import StoreAwayError
from app.queue import JobQueue
from app.telemetry import OUTBOX_FAILURES, log

EXPIRY_SECONDS = 600.0
BREATH_SECONDS = 0.25
"""At least so long between the starts of two rounds: many messages go out together, and a first one at once."""


@dataclass(slots=True)
class Housekeeper:
    """A thread that wakes up on demand, and at least every `pause_seconds`; and one that forgets, which takes its time."""

    database: Database
    queue: JobQueue
    pause_seconds: float
    sweep_seconds: float
    notify_again_seconds: float
    store: ArtifactStore | None = None
    """Where work of unfinished jobs is, whose workers may be gone when they end."""
    retention: Retention = field(default_factory=Retention)
    between: list[Callable[[], object]] = field(default_factory=list)
    """What else is done each round, before messages are sent."""
    _wake: threading.Event = field(default_factory=threading.Event)
    _stop: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def start(self) -> None:
        """Begin."""
        for name, run in (
            ("housekeeping", self._run), ("tidying", self._run_tidying), ("expiry", self._run_expiry),
        ):  # fmt: skip
            thread = threading.Thread(target=run, name=name, daemon=True)
            self._threads.append(thread)
            thread.start()

    def wake(self) -> None:
        """There is a new message in the outbox."""
        self._wake.set()

    def stop(self) -> None:
        """End after the current round."""
        self._stop.set()
        self._wake.set()
        for thread in self._threads:
            thread.join(timeout=15)

    def _run(self) -> None:
        last_sweep = -math.inf
        while not self._stop.is_set():
            begun = time.monotonic()
            if begun - last_sweep >= self.sweep_seconds:
                last_sweep = begun
                self.sweep()
            for step in (*self.between, self.relay):
                self._guarded(step)
            self._wake.wait(self.pause_seconds)
            self._stop.wait(begun + BREATH_SECONDS - time.monotonic())
            self._wake.clear()

    def _run_tidying(self) -> None:
        """Apart from what starts jobs: an artifact store may hang for minutes."""
        while not self._stop.wait(self.sweep_seconds):
            self.tidy()

    def _run_expiry(self) -> None:
        while not self._stop.wait(EXPIRY_SECONDS):
            self.expire()

    def _guarded(self, step: Callable[[], object]) -> None:
        """Do one thing; what goes wrong with it must not keep the others from being done."""
        try:
            step()
        except Exception as error:  # noqa: BLE001  the edge of a thread: without it no job would start
            name = getattr(step, "__name__", repr(step))
            if is_away(error) or isinstance(error, StoreAwayError):
                # Every fact is in the database, so there is nothing to do but wait.
                log.warning("housekeeping_waits", step=name, error=type(error).__name__)
            else:
                log.error("housekeeping_bug", step=name, exc_info=error)

    def sweep(self) -> None:
        """Free jobs of dead attempts, announce jobs whose message was lost, forget what is over."""
        for step in (
            self._free_lost_jobs, self._fail_overdue_jobs, self._notify_forgotten_jobs,
        ):  # fmt: skip
            self._guarded(step)
        for forget in (
            forget_ended_sessions, forget_old_answers, forget_old_windows, forget_old_deliveries, forget_absent_workers,
            forget_secrets_of_ended_jobs,
        ):  # fmt: skip
            self._guarded(partial(forget, self.database))

    def _free_lost_jobs(self) -> None:
        lost = free_lost_jobs(self.database)
        if lost:
            count(self.database, LEASES_LOST.more(amount=lost))
            log.warning("lost_jobs_freed", count=lost)

    def _fail_overdue_jobs(self) -> None:
        fail_overdue_jobs(self.database)

    def _notify_forgotten_jobs(self) -> None:
        notify_forgotten_jobs(self.database, self.notify_again_seconds)

    def tidy(self) -> None:
        """Remove the unfinished work of jobs that are over."""
        self._guarded(self._drop_leftovers)

    def _drop_leftovers(self) -> None:
        if self.store is not None:
            drop_ended(self.database, self.store)

    def expire(self) -> None:
        """Forget what is older than its owner wants to keep; a batch of each kind, more the next time."""
        for step in (
            self._expire_artifacts,
            self._expire_history,
            self._expire_jobs,
            self._drop_unclaimed,
        ):
            self._guarded(step)

    def _expire_artifacts(self) -> None:
        if self.retention.artifact_days is not None:
            self._drop(expire_artifacts(self.database, self.retention.artifact_days))

    def _expire_history(self) -> None:
        expire_history(self.database, self.retention)

    def _expire_jobs(self) -> None:
        if self.retention.job_days is not None:
            self._drop(expire_jobs(self.database, self.retention.job_days))
            forget_figures(self.database, self.retention.job_days)

    def _drop(self, job_ids: list[str]) -> None:
        for job_id in job_ids:
            if self.store is not None:
                self.store.remove(job_id)
        if job_ids:
            log.info("expired", jobs=len(job_ids))

    def _drop_unclaimed(self) -> None:
        if self.store is not None:
            drop_unclaimed(self.database, self.store)
            drop_late(self.database, self.store)

    def relay(self) -> None:
        """Send due messages, outside of any transaction: the broker may take long to answer.

        They are taken for a while first, so that another process does not send them too. A crash in between
        sends twice, which is harmless.
        """
        with self.database.write() as session:
            messages = take_due_messages(session)
        sent: list[OutboxMessage] = []
        away = False
        for message in messages:
            try:
                self.queue.notify(message.job_id)
            except (KombuError, RedisError, OSError) as error:
                OUTBOX_FAILURES.inc()
                log.warning("broker_unavailable", error=type(error).__name__)
                away = True
                break  # the others would fare no better
            sent.append(message)
        if sent:
            with self.database.write() as session:
                mark_sent(session, sent)
        if away:
            with self.database.write() as session:
                postpone(session, messages[len(sent)], messages[len(sent) + 1 :])
