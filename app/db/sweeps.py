"""Sweeps as clients see them, and as the controller moves them on."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import (
    Connection,
    delete,
    func,
    select,
    tuple_,
    update,
)
from sqlalchemy.orm import Session

from app.db.jobs import new_id
from app.db.models import TenantLimits
from app.db.quotas import one_at_a_time
from app.db.session import now
from app.db.sweep_models import SweepEvent, SweepMember, SweepRow
from app.domain.errors import (
    QuotaExceededError,
)
from app.domain.job_status import JobStatus
from app.domain.sweep_errors import (
    SweepActiveError,
    SweepEndedError,
    SweepNotFoundError,
    SweepNotRetryableError,
)
from app.domain.sweep_status import ENDED, SKIPPED, WAITING, SweepStatus
from spq_core.errors import RecipeError
from spq_core.sweep.document import MOST_MEMBERS

UNSUCCESSFUL = frozenset({JobStatus.FAILED, JobStatus.CANCELED})
SWEEP_ID = re.compile(r"swp_[0-9a-f]{32}")


@dataclass(frozen=True, slots=True, kw_only=True)
class NewMember:
    """A recipe of a sweep."""

    number: int
    fields: dict[str, Any]
    recipe: dict[str, Any]
    recipe_sha256: str
    estimate: dict[str, Any] | None = None
    status: str = WAITING
    stopped: str | None = None
    error: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NewSweep:
    """What is known when a sweep is accepted."""

    request: dict[str, Any]
    sweep: dict[str, Any]
    model_name: str
    source_commit: str | None
    max_parallel: int
    members: Sequence[NewMember]
    sealed_token: str | None = None
    traceparent: str | None = None


class SweepGlance(NamedTuple):
    """As much of a sweep as tells whether it has news."""

    version: int
    status: str
    last_event: int


@dataclass(frozen=True, slots=True)
class SweepRepository:
    """One tenant's sweeps. Another tenant's do not exist for it."""

    session: Session
    tenant: str

    def add(self, new: NewSweep, moment: datetime) -> SweepRow:
        """Store a sweep, its members and its first event.

        Raises:
            QuotaExceededError: the tenant has as many unfinished sweeps as it may have unfinished jobs.
        """
        require_sweep_room(self.session, self.tenant)
        row = SweepRow(
            id=new_id("swp"), tenant=self.tenant, status=SweepStatus.RUNNING, version=1, last_event=0,
            request=new.request, sweep=new.sweep, model_name=new.model_name,
            source_commit=new.source_commit, max_parallel=new.max_parallel, beside={},
            sealed_token=new.sealed_token, created_at=moment, traceparent=new.traceparent,
        )  # fmt: skip
        self.session.add(row)
        self.session.flush()
        add_members(self.session, row.id, new.members)
        append_sweep_event(self.session, row, "status", {"status": row.status})
        return row

    def get(self, sweep_id: str, *, lock: bool = False) -> SweepRow:
        """Return one sweep.

        Raises:
            SweepNotFoundError: there is none, or it is another tenant's.
        """
        row = None
        if SWEEP_ID.fullmatch(sweep_id):
            query = select(SweepRow).where(SweepRow.id == sweep_id, SweepRow.tenant == self.tenant)
            row = self.session.scalar(query.with_for_update() if lock else query)
        if row is None:
            raise SweepNotFoundError(sweep_id)
        return row

    def members(self, sweep_id: str) -> list[SweepMember]:
        """All members, by number."""
        return sweep_members(self.session, sweep_id)

    def page(self, *, limit: int, after: tuple[datetime, str] | None) -> list[SweepRow]:
        """Up to `limit` sweeps, newest first, that come after a position in that order."""
        query = select(SweepRow).where(SweepRow.tenant == self.tenant)
        if after is not None:
            query = query.where(tuple_(SweepRow.created_at, SweepRow.id) < after)
        newest = query.order_by(SweepRow.created_at.desc(), SweepRow.id.desc())
        return list(self.session.scalars(newest.limit(limit)))

    def events(self, sweep_id: str, *, after: int, limit: int) -> list[SweepEvent]:
        """Events with a number above `after`, in order."""
        self.get(sweep_id)
        query = select(SweepEvent).where(SweepEvent.sweep_id == sweep_id, SweepEvent.seq > after)
        return list(self.session.scalars(query.order_by(SweepEvent.seq).limit(limit)))

    def set_status(self, sweep_id: str, status: SweepStatus) -> SweepRow:
        """Pause, resume or cancel; what is asked for twice is done once.

        Raises:
            SweepEndedError: it has ended; one that is to be canceled is returned unchanged.
        """
        row = self.get(sweep_id, lock=True)
        if row.status in ENDED:
            if status == SweepStatus.CANCELING:
                return row
            raise SweepEndedError(sweep_id, row.status)
        if row.status == SweepStatus.CANCELING and status != SweepStatus.CANCELING:
            raise SweepEndedError(sweep_id, row.status)
        if row.status != status:
            row.status = status
            append_sweep_event(self.session, row, "status", {"status": status})
        return row

    def retry(self, sweep_id: str) -> SweepRow:
        """Let members wait again that failed, were canceled, or were skipped because the sweep stopped.

        Raises:
            SweepNotRetryableError: there are none, or the sweep had a Hub token of its own.
        """
        row = self.get(sweep_id, lock=True)
        if row.status == SweepStatus.CANCELING:
            raise SweepEndedError(sweep_id, row.status)
        if row.request.get("hub_token") is not None and row.status in ENDED:
            raise SweepNotRetryableError(sweep_id, "had a hub_token of its own, which is forgotten")
        members = self.members(sweep_id)
        again = [one for one in members if _can_be_tried_again(one)]
        finals = [one for one in members if one in again or one.final_status in UNSUCCESSFUL]
        if not again and not any(one.final_status in UNSUCCESSFUL for one in members):
            raise SweepNotRetryableError(sweep_id, "has no member that failed or was stopped")
        for member in again:
            member.status, member.job_id, member.stopped = WAITING, None, None
            member.row, member.error = None, None
        for member in finals:
            member.final_job_id, member.final_status, member.final = None, None, None
        self._reopen(row)
        numbers = [member.number for member in again]
        append_sweep_event(self.session, row, "status", {"status": row.status, "again": numbers})
        return row

    def change(
        self,
        sweep_id: str,
        *,
        max_parallel: int | None,
        labels: dict[str, str] | None,
        more: Sequence[NewMember],
    ) -> SweepRow:
        """Change how a sweep goes on, and add members that it does not have.

        Args:
            more: numbered on, wherever their own numbers begin.

        Raises:
            SweepEndedError: it is being canceled; or it has ended, and there is nothing to add.
            SweepNotRetryableError: it has ended, and had a Hub token of its own.
            RecipeError: all that is to be added is there, or there would be too many.
        """
        row = self.get(sweep_id, lock=True)
        has_ended = row.status in ENDED
        if row.status == SweepStatus.CANCELING or (
            has_ended and not more and max_parallel is not None
        ):
            raise SweepEndedError(sweep_id, row.status)
        if has_ended and more and row.request.get("hub_token") is not None:
            raise SweepNotRetryableError(sweep_id, "had a hub_token of its own, which is forgotten")
        told: dict[str, Any] = {}
        if max_parallel is not None:
            row.max_parallel = told["max_parallel"] = max_parallel
        if labels is not None:
            row.request = row.request | {"labels": labels}
            told["labels"] = labels
        if more:
            told["added"] = self._add_more(row, more)
            self._reopen(row)
        append_sweep_event(self.session, row, "status", {"status": row.status, **told})
        return row

    def _add_more(self, row: SweepRow, more: Sequence[NewMember]) -> list[int]:
        members = self.members(row.id)
        known = {one.recipe_sha256 for one in members}
        new = [one for one in more if one.recipe_sha256 not in known]
        if not new:
            raise RecipeError("sweep: all that you would add are members already")
        if len(members) + len(new) > MOST_MEMBERS:
            raise RecipeError(f"sweep: it would have more than {MOST_MEMBERS} members")
        first = len(members) + 1
        added = [replace(one, number=number) for number, one in enumerate(new, start=first)]
        add_members(self.session, row.id, added)
        return [one.number for one in added]

    def _reopen(self, row: SweepRow) -> None:
        """Let a sweep that has ended go on."""
        if row.status in ENDED:
            require_sweep_room(self.session, self.tenant)
            row.finished_at, row.status = None, SweepStatus.RUNNING

    def remove(self, sweep_id: str) -> None:
        """Forget a sweep that has ended; its members' jobs stay jobs.

        Raises:
            SweepActiveError: it has not.
        """
        row = self.get(sweep_id, lock=True)
        if row.status not in ENDED:
            raise SweepActiveError(sweep_id, row.status)
        self.session.execute(delete(SweepRow).where(SweepRow.id == sweep_id))


def require_sweep_room(session: Session, tenant: str) -> None:
    """Make sure that a tenant may have one more unfinished sweep; two requests at once see one another.

    Raises:
        QuotaExceededError: it has as many as it may have unfinished jobs.
    """
    limits = session.get(TenantLimits, tenant)
    if limits is None or limits.max_active_jobs is None:
        return
    one_at_a_time(session, tenant)
    own = (SweepRow.tenant == tenant, SweepRow.status.not_in(ENDED))
    count = session.scalar(select(func.count()).where(*own)) or 0
    if count >= limits.max_active_jobs:
        raise QuotaExceededError("max_active_jobs", limits.max_active_jobs)


def member_counts(session: Session, sweeps: Sequence[str]) -> dict[str, dict[str, int]]:
    """By sweep, how many members have each status."""
    query = (
        select(SweepMember.sweep_id, SweepMember.status, func.count())
        .where(SweepMember.sweep_id.in_(sweeps))
        .group_by(SweepMember.sweep_id, SweepMember.status)
    )
    found: dict[str, dict[str, int]] = {}
    for sweep_id, status, count in session.execute(query):
        found.setdefault(sweep_id, {})[status] = count
    return found


def add_members(session: Session, sweep_id: str, new: Sequence[NewMember]) -> None:
    """Store members."""
    session.add_all(
        SweepMember(
            sweep_id=sweep_id, number=one.number, fields=one.fields, recipe=one.recipe,
            recipe_sha256=one.recipe_sha256, estimate=one.estimate, status=one.status,
            stopped=one.stopped, error=one.error,
        )
        for one in new
    )  # fmt: skip
    session.flush()


def sweep_members(session: Session, sweep_id: str) -> list[SweepMember]:
    """All members, by number."""
    query = select(SweepMember).where(SweepMember.sweep_id == sweep_id)
    return list(session.scalars(query.order_by(SweepMember.number)))


def sweep_glance(connection: Connection, tenant: str, sweep_id: str) -> SweepGlance:
    """Return what streams look at.

    Raises:
        SweepNotFoundError: as `SweepRepository.get`.
    """
    columns = select(SweepRow.version, SweepRow.status, SweepRow.last_event)
    query = columns.where(SweepRow.id == sweep_id, SweepRow.tenant == tenant)
    found = connection.execute(query).one_or_none()
    if found is None:
        raise SweepNotFoundError(sweep_id)
    return SweepGlance(*found)


def append_sweep_event(session: Session, row: SweepRow, kind: str, data: Mapping[str, Any]) -> None:
    """Add the next event of a sweep whose row this transaction holds; clients see a new version."""
    row.last_event += 1
    row.version += 1
    session.flush()
    session.add(
        SweepEvent(sweep_id=row.id, seq=row.last_event, at=now(session), type=kind, data=dict(data))
    )


def forget_tokens_of_ended_sweeps(session: Session) -> None:
    """A Hub token lives as long as its sweep."""
    ended = (SweepRow.status.in_(ENDED), SweepRow.sealed_token.is_not(None))
    session.execute(update(SweepRow).where(*ended).values(sealed_token=None))


def _can_be_tried_again(member: SweepMember) -> bool:
    failed = member.status in UNSUCCESSFUL
    return failed or (member.status == SKIPPED and member.stopped != "infeasible")
