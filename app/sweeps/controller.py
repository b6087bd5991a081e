"""Moves sweeps on: makes jobs of members, takes in what became of them, ends sweeps.

It runs in the housekeeping thread of every API process; a row lock gives each sweep one of them at a time. Everything it
decides by is in the database, so that a process may die anywhere.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from statistics import fmean

from sqlalchemy.orm import Session

from app.artifacts.store import ArtifactStore
from app.db.jobs import JobRepository, NewJob
from app.db.quotas import require_room
from app.db.retention import drop_files
from app.db.session import Database, is_away, now
from app.db.sweep_models import SweepMember, SweepRow
from app.db.sweep_steps import (
    Unsettled,
    droppable_jobs,
    ended_job,
    first_commit,
    job_states,
    lock_sweep,
    unsettled_sweeps,
)
from app.db.sweeps import NewMember, add_members, append_sweep_event, sweep_members
from app.db.webhooks import enqueue_message
from app.domain.errors import PublishInProgressError, QuotaExceededError, StoreAwayError
from app.domain.job_status import TERMINAL, JobStatus
from app.domain.sweep_status import MEMBER_ENDED, SKIPPED, WAITING, SweepStatus
from app.sweeps.views import sweep_url, tried, verdict
from app.telemetry import log
from spq_core.errors import RecipeError
from spq_core.sweep.document import Sweep, parse_sweep
from spq_core.sweep.outcome import compared
from spq_core.sweep.search import next_members, stops

GONE = {"code": "job_not_found", "message": "its job was deleted before it ended"}
BLOCKED_SECONDS = 10.0
"""How long a sweep that waits for a quota is not looked at, unless a member changes."""
RELEASED_AT_ONCE = 16


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
        if not one.active and not one.waiting:
            return True
        if one.status == SweepStatus.PAUSED or not one.waiting:
            return False
        if one.active >= _places(one, one.succeeded):
            return False
        looked = self._blocked.get(one.id, -BLOCKED_SECONDS)
        return one.waits_for is None or time.monotonic() - looked >= BLOCKED_SECONDS

    def _advance(self, sweep_id: str) -> None:
        with self.database.write() as session:
            row = lock_sweep(session, sweep_id)
            if row is None:
                return
            step = _Step(session, row, self.max_attempts)
            step.take()
            self._blocked.pop(sweep_id, None)
            if row.waits_for is not None:
                self._blocked[sweep_id] = time.monotonic()
        if step.released:
            self.wake()
        for job_id in step.dropped:
            with suppress(StoreAwayError):  # what nobody has a right to is swept later
                self.store.remove(job_id)


def _places(sweep: Unsettled | SweepRow, succeeded: int) -> int:
    """How many members may be on their way.

    One until figures that all have in common are there, and until the commit is known that all are made of.
    """
    shares = sweep.request["evaluation"].get("reuse", True) and not succeeded
    unpinned = sweep.request["model"].get("repo_id") is not None and sweep.source_commit is None
    return 1 if shares or unpinned else sweep.max_parallel


@dataclass(slots=True)
class _Step:
    """One step of a sweep whose row is locked."""

    session: Session
    row: SweepRow
    max_attempts: int
    released: list[str] = field(default_factory=list)
    """Jobs that it made."""
    dropped: list[str] = field(default_factory=list)
    """Jobs whose artifacts are not kept."""

    def take(self) -> None:
        """Look, release, drop, end."""
        version = self.row.version
        self._look()
        if self.row.status == SweepStatus.CANCELING:
            self._cancel()
        else:
            self._stop_early()
            self._search_on()
            if self.row.status == SweepStatus.RUNNING:
                self._release()
            self._drop_beaten()
        if self.row.version != version:
            self.row.estimated_finish_at = self._expected_end()
        if not any(one.status not in MEMBER_ENDED for one in self.members):
            self._end()

    @property
    def members(self) -> list[SweepMember]:
        return sweep_members(self.session, self.row.id)

    @property
    def sweep(self) -> Sweep:
        return parse_sweep(self.row.sweep)

    def _look(self) -> None:
        states = job_states(self.session, self.row.id)
        for member in self.members:
            if member.job_id is None or member.status in TERMINAL:
                continue
            status = states.get(member.number)
            if status is None:
                member.status, member.error = JobStatus.FAILED, dict(GONE)
            elif status == member.status:
                continue
            else:
                member.status = status
                if status in TERMINAL:
                    self._take_in(member, member.job_id)
            self._tell(member)
        on_hub = self.row.request["model"].get("repo_id") is not None
        if on_hub and self.row.source_commit is None:
            self.row.source_commit = first_commit(self.session, self.row.id)
            self.row.version += self.row.source_commit is not None

    def _take_in(self, member: SweepMember, job_id: str) -> None:
        """Keep what a job found, also one that failed."""
        job = ended_job(self.session, job_id)
        if job is None:
            return
        member.error = job.error
        result = job.result or {}
        if result.get("rows"):
            row, beside = compared(result["rows"])
            rate = result.get("compression", {}).get("theoretical_rate")
            seconds = result.get("measured", {}).get("seconds")
            more = {"seconds": seconds, "theoretical_rate": rate}
            member.row = row | more
            self.row.beside = {**self.row.beside, **beside}
        elif member.status == JobStatus.SUCCEEDED:
            missing = result.get("missing") or {"message": "it was not measured"}
            member.status = JobStatus.FAILED
            member.error = {"code": "evaluation_failed", "message": missing["message"]}

    def _cancel(self) -> None:
        jobs = JobRepository(self.session, self.row.tenant)
        for member in self.members:
            if member.status == WAITING:
                self._skip(member, "canceled")
            elif member.job_id is not None and member.status not in {
                *TERMINAL,
                JobStatus.CANCELING,
            }:
                with suppress(PublishInProgressError):
                    member.status = jobs.cancel(member.job_id).status
                    self._tell(member)

    def _search_on(self) -> None:
        """Add the member that a search comes to."""
        dataset = self.row.request.get("dataset")
        try:
            more = next_members(self.sweep, tried(self.members), dataset)
        except RecipeError as error:
            log.warning("sweep_search_ended", sweep_id=self.row.id, error=str(error))
            return
        found = [
            NewMember(
                number=one.number, fields=dict(one.fields), recipe=one.recipe.document(),
                recipe_sha256=one.recipe.sha256(),
            )
            for one in more
        ]  # fmt: skip
        add_members(self.session, self.row.id, found)

    def _stop_early(self) -> None:
        why = stops(self.sweep, tried(self.members))
        for member in self.members:
            if why is not None and member.status == WAITING:
                self._skip(member, why)

    def _release(self) -> None:
        """Make jobs of members that wait, as many as may be on their way."""
        members = self.members
        active = sum(bool(one.job_id) and one.status not in TERMINAL for one in members)
        succeeded = sum(one.status == JobStatus.SUCCEEDED for one in members)
        free = min(_places(self.row, succeeded) - active, RELEASED_AT_ONCE)
        waits_for = None
        for member in [one for one in members if one.status == WAITING][: max(0, free)]:
            try:
                require_room(self.session, self.row.tenant)
            except QuotaExceededError as error:
                waits_for = str(error)[:200]
                break
            self._make_job(member)
        if waits_for != self.row.waits_for:
            self.row.waits_for = waits_for
            self.row.version += 1

    def _make_job(self, member: SweepMember) -> None:
        request = self.row.request
        model = dict(request["model"])
        if self.row.source_commit is not None and model.get("repo_id") is not None:
            model["revision"] = self.row.source_commit
        limits = request["limits"]
        new = NewJob(
            request={
                "model": model, "recipe": member.recipe, "evaluation": request["evaluation"],
                "output": None, "webhook": None, "hub_token": request["hub_token"],
                "limits": limits, "labels": request["labels"],
            },
            recipe=member.recipe, recipe_sha256=member.recipe_sha256,
            model_name=self.row.model_name, max_attempts=self.max_attempts,
            max_pending_seconds=limits["max_pending_seconds"],
            max_runtime_seconds=limits["max_runtime_seconds"], sealed_token=self.row.sealed_token,
            traceparent=self.row.traceparent, sweep_id=self.row.id, sweep_member=member.number,
        )  # fmt: skip
        job = JobRepository(self.session, self.row.tenant).add(new, now(self.session))
        member.job_id, member.status = job.id, job.status
        self.released.append(job.id)
        self._tell(member)

    def _skip(self, member: SweepMember, why: str) -> None:
        member.status, member.stopped = SKIPPED, why
        self._tell(member)

    def _tell(self, member: SweepMember) -> None:
        data = {"number": member.number, "status": member.status, "job_id": member.job_id}
        more = {"stopped": member.stopped, "error": member.error}
        told = data | {name: value for name, value in more.items() if value is not None}
        append_sweep_event(self.session, self.row, "member", told)

    def _expected_end(self) -> datetime | None:
        """When the rest will be done if it takes as long as members took."""
        members = self.members
        rows = [one.row for one in members if one.row is not None]
        taken = [row["seconds"] for row in rows if row["seconds"] is not None]
        left = sum(one.status not in MEMBER_ENDED for one in members)
        if not taken or not left:
            return None
        rounds = -(-left // self.row.max_parallel)
        return now(self.session) + timedelta(seconds=fmean(taken) * rounds)

    def _drop_beaten(self) -> None:
        """Let go of artifacts that will not be kept: what is beaten stays beaten, whatever comes after it."""
        members = [one for one in self.members if one.job_id is not None and one.status in TERMINAL]
        done = {one.number for one in members if one.status == JobStatus.SUCCEEDED and one.row}
        kept = verdict(self.row, members).kept(self.sweep, done)
        jobs = [one.job_id for one in members if one.number not in kept and one.job_id is not None]
        spared = droppable_jobs(self.session, self.row.tenant, jobs)
        self.dropped = drop_files(self.session, spared) if spared else []

    def _end(self) -> None:
        members = self.members
        has_figures = any(one.status == JobStatus.SUCCEEDED and one.row for one in members)
        ended = SweepStatus.FINISHED if has_figures else SweepStatus.FAILED
        if self.row.status == SweepStatus.CANCELING:
            ended = SweepStatus.CANCELED
        self.row.finished_at, self.row.status = now(self.session), ended
        self.row.sealed_token = self.row.waits_for = self.row.estimated_finish_at = None
        told = {"status": self.row.status, **verdict(self.row, members).document()}
        append_sweep_event(self.session, self.row, "status", told)
        self._tell_webhook(told)
        log.info("sweep_ended", sweep_id=self.row.id, status=self.row.status, members=len(members))

    def _tell_webhook(self, told: dict[str, object]) -> None:
        hook = self.row.request.get("webhook")
        if hook is None:
            return
        data = {
            "id": self.row.id, "model": self.row.model_name, "labels": self.row.request["labels"],
            "url": sweep_url(self.row.id), **told,
        }  # fmt: skip
        enqueue_message(
            self.session, tenant=self.row.tenant, about=self.row.id, url=hook["url"],
            kind="sweep.finished", data=data,
        )  # fmt: skip
