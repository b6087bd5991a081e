"""Moves sweeps on: makes jobs of members, takes in what became of them, ends sweeps.

It runs in the housekeeping thread of every API process; a row lock gives each sweep one of them at a time. Everything it
decides by is in the database, so that a process may die anywhere.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from app.artifacts.store import ArtifactStore
from app.db.session import Database, is_away
from app.db.sweep_steps import Unsettled, lock_sweep, unsettled_sweeps
from app.domain.errors import StoreAwayError
from app.domain.sweep_status import SweepStatus
from app.sweeps.step import Step, places
from app.telemetry import log

BLOCKED_SECONDS = 10.0
"""How long a sweep that waits for a quota is not looked at, unless a member changes."""


@dataclass(frozen=True, slots=True)
class SweepController:
    """`advance` is called again and again."""

    database: Database
    wake: Callable[[], None]
    store: ArtifactStore
    max_attempts: int
    _blocked: dict[str, float] = field(default_factory=dict)
    """When sweeps that wait for a quota were looked at."""

    def advance(self) -> None:
        """Move every sweep that has news on by one step."""
        with self.database.read() as session:
            found = unsettled_sweeps(session)
        for one in found:
            if not self._has_news(one):
                continue
            try:
                self._advance(one.id)
            except Exception as error:
                if is_away(error):
                    raise
                # A bug, or a document of another version: the sweeps of others go on.
                log.error("sweep_step_failed", sweep_id=one.id, exc_info=error)

    def _has_news(self, one: Unsettled) -> bool:
        """Whether a step would change something; looking costs no writer anything."""
        if one.changed:
            return True
        if one.status == SweepStatus.CANCELING:
            return bool(one.waiting) or one.stopping < one.active or not one.active
        if not one.waiting and one.active:
            return False
        if one.status == SweepStatus.PAUSED and (one.waiting or one.has_finals):
            return False
        if one.waiting and one.active >= places(one, one.succeeded):
            return False
        looked = self._blocked.get(one.id, -BLOCKED_SECONDS)
        return one.waits_for is None or time.monotonic() - looked >= BLOCKED_SECONDS

    def _advance(self, sweep_id: str) -> None:
        with self.database.write() as session:
            row = lock_sweep(session, sweep_id)
            if row is None:
                return
            step = Step(session, row, self.max_attempts)
            step.take()
            self._blocked.pop(sweep_id, None)
            if row.waits_for is not None:
                self._blocked[sweep_id] = time.monotonic()
        if step.released:
            self.wake()
        for job_id in step.dropped:
            with suppress(StoreAwayError):  # what nobody has a right to is swept later
                self.store.remove(job_id)
