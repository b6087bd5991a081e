"""What the controller of sweeps asks of the database."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, and_, case, func, or_, select
from sqlalchemy.orm import Session, aliased

from app.db.models import ArtifactFile, Job
from app.db.sweep_models import SweepMember, SweepRow
from app.domain.job_status import TERMINAL, JobStatus
from app.domain.sweep_status import ENDED, WAITING


class Unsettled(NamedTuple):
    """How a sweep that has not ended stands, as far as tells whether a step would change something."""

    id: str
    status: str
    max_parallel: int
    waits_for: str | None
    source_commit: str | None
    request: dict[str, Any]
    waiting: int
    active: int
    stopping: int
    """Of the active ones."""
    succeeded: int
    changed: int
    """Members whose jobs have another status, or are gone."""
    finals: dict[str, Any] | None
    """How winners are to be measured once more at the end."""

    @property
    def has_finals(self) -> bool:
        """Whether they are."""
        return self.finals is not None or self.request.get("publish") is not None


def unsettled_sweeps(session: Session) -> list[Unsettled]:
    """Sweeps that have not ended, the oldest first; one statement, whatever their number."""
    own, final = aliased(Job), aliased(Job)
    made = and_(SweepMember.job_id.is_not(None), SweepMember.status.not_in(TERMINAL))
    again = and_(SweepMember.final_job_id.is_not(None), SweepMember.final_status.not_in(TERMINAL))
    active = or_(made, again)
    news = or_(
        and_(made, func.coalesce(own.status, "") != SweepMember.status),
        and_(again, func.coalesce(final.status, "") != SweepMember.final_status),
    )
    stopping = or_(
        and_(made, SweepMember.status == JobStatus.CANCELING),
        and_(again, SweepMember.final_status == JobStatus.CANCELING),
    )

    def many(what: ColumnElement[bool]) -> ColumnElement[int]:
        return func.coalesce(func.sum(case((what, 1), else_=0)), 0)

    counts = (
        select(
            SweepMember.sweep_id.label("id"),
            many(SweepMember.status == WAITING).label("waiting"),
            many(active).label("active"),
            many(stopping).label("stopping"),
            many(SweepMember.status == JobStatus.SUCCEEDED).label("succeeded"),
            many(news).label("changed"),
        )
        .join(SweepRow, SweepRow.id == SweepMember.sweep_id)
        .outerjoin(own, own.id == SweepMember.job_id)
        .outerjoin(final, final.id == SweepMember.final_job_id)
        .where(SweepRow.status.not_in(ENDED))
        .group_by(SweepMember.sweep_id)
        .subquery()
    )
    query = (
        select(
            SweepRow.id, SweepRow.status, SweepRow.max_parallel, SweepRow.waits_for,
            SweepRow.source_commit, SweepRow.request, counts.c.waiting, counts.c.active,
            counts.c.stopping, counts.c.succeeded, counts.c.changed, SweepRow.sweep["finals"],
        )
        .join(counts, counts.c.id == SweepRow.id)
        .order_by(SweepRow.created_at)
    )  # fmt: skip
    return [Unsettled(*row) for row in session.execute(query)]


def lock_sweep(session: Session, sweep_id: str) -> SweepRow | None:
    """A sweep that has not ended and that nobody else is moving on."""
    query = select(SweepRow).where(SweepRow.id == sweep_id, SweepRow.status.not_in(ENDED))
    return session.scalar(query.with_for_update(skip_locked=True))


def job_states(session: Session, sweep_id: str) -> dict[int, str]:
    """By member, the status of its job, while the member does not know its end."""
    query = select(SweepMember.number, Job.status).join(Job, Job.id == SweepMember.job_id)
    found = session.execute(query.where(SweepMember.sweep_id == sweep_id)).all()
    return {number: status for number, status in found}  # noqa: C416 - rows are no pairs to mypy


def final_states(session: Session, sweep_id: str) -> dict[int, str]:
    """By member, the status of the job that measures it once more."""
    query = select(SweepMember.number, Job.status).join(Job, Job.id == SweepMember.final_job_id)
    found = session.execute(query.where(SweepMember.sweep_id == sweep_id)).all()
    return {number: status for number, status in found}  # noqa: C416 - rows are no pairs to mypy


def ended_job(session: Session, job_id: str) -> Job | None:
    """A member's job, with what it came to; None if somebody deleted it."""
    return session.get(Job, job_id)


def first_commit(session: Session, sweep_id: str) -> str | None:
    """The commit that a member was made of, once one knows."""
    query = (
        select(Job.source_commit)
        .join(SweepMember, SweepMember.job_id == Job.id)
        .where(SweepMember.sweep_id == sweep_id, Job.source_commit.is_not(None))
    )
    return session.scalar(query.order_by(Job.created_at).limit(1))


def droppable_jobs(session: Session, tenant: str, jobs: Sequence[str]) -> list[str]:
    """Those of some ended jobs that have files, which no unfinished job measures."""
    measured = select(Job.request["measure_of"].as_string()).where(
        Job.tenant == tenant,
        Job.status.not_in(TERMINAL),
        Job.request["measure_of"].as_string().is_not(None),
    )
    query = select(ArtifactFile.job_id).distinct().where(ArtifactFile.job_id.in_(jobs))
    return list(session.scalars(query.where(ArtifactFile.job_id.not_in(measured))))
