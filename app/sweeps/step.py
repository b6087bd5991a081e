"""One step of a sweep whose row is locked: take in what its jobs came to, make jobs, let go of artifacts, end."""

from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from statistics import fmean
from typing import Any

from sqlalchemy.orm import Session

from app.db.jobs import JobRepository, NewJob
from app.db.quotas import require_room
from app.db.retention import drop_files
from app.db.session import now
from app.db.sweep_models import SweepMember, SweepRow
from app.db.sweep_steps import (
    Unsettled,
    droppable_jobs,
    ended_job,
    final_states,
    first_commit,
    job_states,
)
from app.db.sweeps import UNSUCCESSFUL, NewMember, add_members, append_sweep_event, sweep_members
from app.db.webhooks import enqueue_message
from app.domain.errors import PublishInProgressError, QuotaExceededError
from app.domain.job_status import TERMINAL, JobStatus
from app.domain.sweep_status import MEMBER_ENDED, SKIPPED, WAITING, SweepStatus
from app.sweeps.finals import (
    final_outcome,
    final_request,
    finals_of,
    is_final_active,
    is_open,
    publishes,
    winners,
)
from app.sweeps.views import sweep_url, tried, verdict
from app.telemetry import log
from spq_core.errors import RecipeError
from spq_core.sweep.document import Finals, Sweep, parse_sweep
from spq_core.sweep.outcome import compared
from spq_core.sweep.search import next_members, stops

GONE = {"code": "job_not_found", "message": "its job was deleted before it ended"}
RELEASED_AT_ONCE = 16
STOPPING = frozenset({*TERMINAL, JobStatus.CANCELING})


def places(sweep: Unsettled | SweepRow, succeeded: int) -> int:
    """How many members may be on their way.

    One until figures that all have in common are there, and until the commit is known that all are made of.
    """
    shares = sweep.request["evaluation"].get("reuse", True) and not succeeded
    unpinned = sweep.request["model"].get("repo_id") is not None and sweep.source_commit is None
    return 1 if shares or unpinned else sweep.max_parallel


@dataclass(slots=True)
class Step:
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
                self._release_final()
            self._drop_beaten()
        if self.row.version != version:
            self.row.estimated_finish_at = self._expected_end()
        if self._has_ended():
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
        self._look_at_finals()
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
            elif member.job_id is not None and member.status not in STOPPING:
                with suppress(PublishInProgressError):
                    member.status = jobs.cancel(member.job_id).status
                    self._tell(member)
            if member.final_job_id is not None and member.final_status not in STOPPING:
                with suppress(PublishInProgressError):
                    member.final_status = jobs.cancel(member.final_job_id).status
                    self._tell_final(member)

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
        waiting = [one for one in members if one.status == WAITING]
        if not waiting:
            return
        active = sum(bool(one.job_id) and one.status not in TERMINAL for one in members)
        succeeded = sum(one.status == JobStatus.SUCCEEDED for one in members)
        free = min(places(self.row, succeeded) - active, RELEASED_AT_ONCE)
        waits_for = None
        for member in waiting[: max(0, free)]:
            waits_for = self._lacks_room()
            if waits_for is not None:
                break
            member.job_id, member.status = self._make_job(member, {})
            self._tell(member)
        self._wait_for(waits_for)

    def _release_final(self) -> None:
        """Have the next winner measured once more, alone, when all members have ended."""
        members = self.members
        finals = finals_of(self.row, self.sweep)
        if finals is None or any(
            one.status not in MEMBER_ENDED or is_final_active(one) for one in members
        ):
            return
        member, best = self._next_final(finals)
        if member is None:
            return
        waits_for = self._lacks_room()
        if waits_for is None:
            member.final = {"publishes": publishes(self.row, member, best)}
            changes = final_request(self.row, member, finals, best)
            member.final_job_id, member.final_status = self._make_job(member, changes)
            self._tell_final(member)
        self._wait_for(waits_for)

    def _next_final(self, finals: Finals | None) -> tuple[SweepMember | None, int | None]:
        """The winner whose turn it is, and the best member's number."""
        known = {one.number: one for one in self.members}
        best = verdict(self.row, self.members).best
        order = [known[one] for one in winners(self.row, self.members, finals)]
        return next((one for one in order if is_open(self.row, one, best)), None), best

    def _lacks_room(self) -> str | None:
        """Why the tenant may have no more jobs now."""
        try:
            require_room(self.session, self.row.tenant)
        except QuotaExceededError as error:
            return str(error)[:200]
        return None

    def _wait_for(self, why: str | None) -> None:
        if why != self.row.waits_for:
            self.row.waits_for = why
            self.row.version += 1

    def _make_job(self, member: SweepMember, changes: dict[str, Any]) -> tuple[str, str]:
        """The job of a member, or of its final; return its id and status."""
        request = self.row.request
        model = dict(request["model"])
        if self.row.source_commit is not None and model.get("repo_id") is not None:
            model["revision"] = self.row.source_commit
        limits = request["limits"]
        new = NewJob(
            request={
                "model": model, "recipe": member.recipe, "evaluation": request["evaluation"],
                "output": None, "webhook": None, "hub_token": request["hub_token"],
                "limits": limits, "labels": request["labels"], **changes,
            },
            recipe=member.recipe, recipe_sha256=member.recipe_sha256,
            model_name=self.row.model_name, max_attempts=self.max_attempts,
            max_pending_seconds=limits["max_pending_seconds"],
            max_runtime_seconds=limits["max_runtime_seconds"], sealed_token=self.row.sealed_token,
            traceparent=self.row.traceparent, sweep_id=self.row.id, sweep_member=member.number,
        )  # fmt: skip
        job = JobRepository(self.session, self.row.tenant).add(new, now(self.session))
        self.released.append(job.id)
        return job.id, job.status

    def _skip(self, member: SweepMember, why: str) -> None:
        member.status, member.stopped = SKIPPED, why
        self._tell(member)

    def _tell(self, member: SweepMember) -> None:
        data = {"number": member.number, "status": member.status, "job_id": member.job_id}
        more = {"stopped": member.stopped, "error": member.error}
        told = data | {name: value for name, value in more.items() if value is not None}
        append_sweep_event(self.session, self.row, "member", told)

    def _look_at_finals(self) -> None:
        states = final_states(self.session, self.row.id)
        for member in self.members:
            if not is_final_active(member):
                continue
            status = states.get(member.number)
            if status == member.final_status:
                continue
            member.final_status = status or JobStatus.FAILED
            if member.final_status in TERMINAL:
                job = ended_job(self.session, str(member.final_job_id))
                member.final = final_outcome(member, job)
            self._tell_final(member)

    def _tell_final(self, member: SweepMember) -> None:
        data = {
            "number": member.number,
            "status": member.final_status,
            "job_id": member.final_job_id,
        }
        error = (member.final or {}).get("error")
        told = data if error is None else data | {"error": error}
        append_sweep_event(self.session, self.row, "final", told)

    def _has_ended(self) -> bool:
        members = self.members
        if any(one.status not in MEMBER_ENDED or is_final_active(one) for one in members):
            return False
        if self.row.status == SweepStatus.CANCELING:
            return True
        return self._next_final(finals_of(self.row, self.sweep))[0] is None

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
        found = verdict(self.row, members)
        kept = found.kept(self.sweep, done)
        if finals_of(self.row, self.sweep) is not None and not self._has_ended():
            kept |= {*found.front, *([] if found.best is None else [found.best])}
        # A final that failed can be made again, of the same artifact.
        kept |= {one.number for one in members if one.final_status in UNSUCCESSFUL}
        jobs = [one.job_id for one in members if one.number not in kept and one.job_id is not None]
        # A final's artifact is its member's once more.
        jobs += [
            one.final_job_id for one in members if one.final_status in TERMINAL and one.final_job_id
        ]
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
