"""What of a tenant's jobs and sweeps has changed since a look before."""

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import NamedTuple

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from app.db.models import DeletedUsage, Job
from app.db.session import Database, now
from app.db.sweep_models import SweepRow
from app.db.sweeps import member_counts
from app.db.waiting_jobs import queue_places
from app.db.workers import busy_workers, present_workers
from app.domain.job_status import TERMINAL, JobStatus
from app.domain.sweep_status import ENDED
from app.jobs.rows import job_row
from app.sweeps.views import sweep_summary

MARGIN = timedelta(seconds=10)
"""Jobs that were made and ended between two looks are found by when they were made; commits take a moment."""
MOST_AT_ONCE = 200
NEVER = 0
"""The version of a job that was not told yet."""


class Change(NamedTuple):
    """One thing, as it is now."""

    type: str
    json: str


@dataclass(slots=True)
class Watch:
    """Of one stream. What it has told is in its memory; the database is asked for what is newer."""

    database: Database
    tenant: str
    _jobs: dict[str, int] = field(default_factory=dict)
    """Versions of unfinished jobs, and of those that were told."""
    _sweeps: dict[str, int] = field(default_factory=dict)
    _gone: set[str] = field(default_factory=set)
    """Deleted jobs that were told, and are found again for a while."""
    _workers: str = ""
    _looked_at: datetime | None = None

    def look(self) -> list[Change]:
        """What is new; the first look tells nothing of jobs and sweeps, which the list has."""
        with self.database.read() as session:
            moment = now(session)
            first = self._looked_at is None
            since = (moment if self._looked_at is None else self._looked_at) - MARGIN
            changes = self._changed_jobs(session, since, tells=not first)
            changes += self._changed_sweeps(session, since, tells=not first)
            changes += self._changed_workers(session)
            self._looked_at = moment
        return changes

    def _changed_jobs(self, session: Session, since: datetime, *, tells: bool) -> list[Change]:
        columns = select(Job.id, Job.version, Job.status).where(Job.tenant == self.tenant)
        unfinished = columns.where(Job.status.not_in(TERMINAL))
        fresh = columns.where(Job.created_at > since)
        found = {row.id: row for row in session.execute(unfinished)}
        found |= {row.id: row for row in session.execute(fresh)}
        missing = [one for one in self._jobs if one not in found]
        found |= {
            row.id: row
            for at in range(0, len(missing), MOST_AT_ONCE)
            for row in session.execute(columns.where(Job.id.in_(missing[at : at + MOST_AT_ONCE])))
        }
        deleted = select(DeletedUsage.job_id).where(
            DeletedUsage.tenant == self.tenant, DeletedUsage.deleted_at > since
        )
        lost = set(session.scalars(deleted))
        gone = sorted(({one for one in missing if one not in found} | lost) - self._gone)
        self._gone |= {*gone}
        self._gone &= lost | {one for one in missing if one not in found}
        changed = [one for one, row in found.items() if self._jobs.get(one) != row.version]
        # What has ended and was told is looked at no more once it is not fresh.
        is_over = {one for one in missing if one in found and found[one].status in TERMINAL}
        later = set(changed[MOST_AT_ONCE:]) if tells else set()
        self._jobs = {
            one: self._jobs.get(one, NEVER) if one in later else row.version
            for one, row in found.items()
            if one not in is_over or one in later
        }
        if not tells:
            return []
        told = [Change("gone", f'{{"id":"{one}"}}') for one in gone]
        return told + self._rows(session, changed[:MOST_AT_ONCE])

    def _rows(self, session: Session, ids: list[str]) -> list[Change]:
        if not ids:
            return []
        jobs = list(session.scalars(select(Job).where(Job.id.in_(ids), Job.tenant == self.tenant)))
        waits = any(job.status == JobStatus.QUEUED for job in jobs)
        places = queue_places(session) if waits else {}
        return [Change("job", job_row(job, places).model_dump_json()) for job in jobs]

    def _changed_sweeps(self, session: Session, since: datetime, *, tells: bool) -> list[Change]:
        recent = or_(
            SweepRow.status.not_in(ENDED), SweepRow.created_at > since, SweepRow.finished_at > since
        )
        rows = list(session.scalars(select(SweepRow).where(SweepRow.tenant == self.tenant, recent)))
        changed = [row for row in rows if self._sweeps.get(row.id) != row.version]
        self._sweeps = {row.id: row.version for row in rows}
        if not tells or not changed:
            return []
        counts = member_counts(session, [row.id for row in changed])
        return [
            Change("sweep", sweep_summary(row, counts.get(row.id, {})).model_dump_json())
            for row in changed
        ]

    def _changed_workers(self, session: Session) -> list[Change]:
        busy, queued = busy_workers(session)
        present = {row.id for row in present_workers(session)}
        words = (
            f'{{"present":{len(present)},"busy":{len(present & busy.keys())},"queued":{queued}}}'
        )
        if words == self._workers:
            return []
        self._workers = words
        return [Change("workers", words)]
