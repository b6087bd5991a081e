"""Jobs as clients see them: add, find, list, cancel, delete."""

import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import Connection, bindparam, delete, insert, select, update
from sqlalchemy.orm import Session

from app.db.base import Base
from app.db.events import append_event
from app.db.models import (
    ArtifactFile,
    DeletedUsage,
    Job,
    JobEvent,
    JobLogLine,
    JobMetric,
    JobSecret,
    LayerReport,
    OutboxMessage,
    WebhookDelivery,
)
from app.db.session import now
from app.db.sweep_models import SweepMember
from app.domain.errors import JobActiveError, JobNotFoundError, PublishInProgressError
from app.domain.job_status import TERMINAL, JobStatus, sources_of
from app.domain.naming_errors import TooManyLabelsError


def _later(moment: datetime, seconds: int | None) -> datetime | None:
    return None if seconds is None else moment + timedelta(seconds=seconds)


MAX_LABELS = 16
JOB_ID = re.compile(r"job_[0-9a-f]{32}")


def new_id(prefix: str) -> str:
    """An id that sorts by time of creation."""
    return f"{prefix}_{time.time_ns() // 1_000_000:012x}{secrets.token_hex(10)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class NewJob:
    """What is known when a job is accepted."""

    request: dict[str, Any]
    recipe: dict[str, Any]
    recipe_sha256: str
    model_name: str
    max_attempts: int
    max_pending_seconds: int | None = None
    max_runtime_seconds: int | None = None
    retry_of: str | None = None
    sealed_token: str | None = None
    """The client's own Hub token."""
    traceparent: str | None = None
    sweep_id: str | None = None
    sweep_member: int | None = None


class Glance(NamedTuple):
    """As much of a job as tells whether it has news, and when to look again."""

    id: str
    version: int
    status: str
    created_at: datetime
    started_at: datetime | None
    last_event: int


@dataclass(frozen=True, slots=True)
class JobRepository:
    """One tenant's jobs. Another tenant's do not exist for it."""

    session: Session
    tenant: str

    def add(self, new: NewJob, moment: datetime) -> Job:
        """Store a job that is queued since `moment`, its first event, and the message that announces it."""
        job = Job(
            id=new_id("job"),
            tenant=self.tenant,
            status=JobStatus.QUEUED,
            version=1,
            last_event=1,
            attempt=0,
            max_attempts=new.max_attempts,
            request=new.request,
            recipe=new.recipe,
            recipe_sha256=new.recipe_sha256,
            model_name=new.model_name,
            committing=False,
            created_at=moment,
            start_before=_later(moment, new.max_pending_seconds),
            max_runtime_seconds=new.max_runtime_seconds,
            retry_of=new.retry_of,
            traceparent=new.traceparent,
            sweep_id=new.sweep_id,
            sweep_member=new.sweep_member,
        )
        # Statements of their own, in order: the unit of work costs as much again.
        columns = {name: value for name, value in vars(job).items() if name in Job.__table__.c}
        self._insert(Job, columns)
        first = {"seq": 1, "at": moment, "attempt": 0, "type": "status"}
        self._insert(JobEvent, {"job_id": job.id, **first, "data": {"status": JobStatus.QUEUED}})
        message = {"created_at": moment, "not_before": moment, "tries": 0}
        self._insert(OutboxMessage, {"job_id": job.id, **message})
        if new.sealed_token is not None:
            self._insert(JobSecret, {"job_id": job.id, "sealed": new.sealed_token})
        return job

    def _insert(self, table: type[Base], values: Mapping[str, Any]) -> None:
        self.session.connection().execute(insert(table), values)

    def get(self, job_id: str) -> Job:
        """Return one job.

        Raises:
            JobNotFoundError: there is none, or it is another tenant's.
        """
        job = None
        if JOB_ID.fullmatch(job_id):
            query = select(Job).where(Job.id == job_id, Job.tenant == self.tenant)
            job = self.session.scalar(query)
        if job is None:
            raise JobNotFoundError(job_id)
        return job

    def change_labels(self, job_id: str, changes: Mapping[str, str | None]) -> Job:
        """Set labels of a job, and remove those that are None.

        Raises:
            TooManyLabelsError: it would have more than a job may.
        """
        self.get(job_id)
        job = self.session.get(Job, job_id, with_for_update=True, populate_existing=True)
        if job is None:
            raise JobNotFoundError(job_id)  # deleted meanwhile
        labels = {**job.request.get("labels", {}), **changes}
        kept = {name: value for name, value in labels.items() if value is not None}
        if len(kept) > MAX_LABELS:
            raise TooManyLabelsError(len(kept), MAX_LABELS)
        if kept != job.request.get("labels", {}):
            job.request = job.request | {"labels": kept}
            job.version += 1
            self.session.flush()
        return job

    def cancel(self, job_id: str) -> Job:
        """Ask a job to stop; a terminal job is returned unchanged.

        Raises:
            PublishInProgressError: its commit on the Hub is being made.
        """
        self.get(job_id)
        moment = now(self.session)
        queued = self._move(
            job_id, JobStatus.CANCELED, finished_at=moment, cancel_requested_at=moment
        )
        if queued is not None:
            return queued
        running = self._move(job_id, JobStatus.CANCELING, cancel_requested_at=moment)
        if running is not None:
            return running
        job = self.get(job_id)
        if job.committing and job.status not in TERMINAL:
            raise PublishInProgressError(job_id)
        return job

    def remove(self, job_id: str) -> None:
        """Delete a terminal job and everything recorded about it.

        Raises:
            JobActiveError: it has not ended.
        """
        self.get(job_id)
        job = self.session.get(Job, job_id, with_for_update=True, populate_existing=True)
        if job is None:
            raise JobNotFoundError(job_id)  # somebody else was faster
        if job.status not in TERMINAL:
            raise JobActiveError(job_id, job.status)
        if job.sweep_id is not None and self._is_awaited(job_id):
            raise JobActiveError(job_id, "about to be taken in by its sweep")
        remember_usage(self.session, job)
        own = WebhookDelivery.job_id == job_id
        self.session.execute(
            delete(WebhookDelivery).where(own, WebhookDelivery.next_try_at.is_(None))
        )
        self.session.execute(delete(Job).where(Job.id == job_id, Job.tenant == self.tenant))

    def _is_awaited(self, job_id: str) -> bool:
        """Whether a sweep has not taken in yet what the job came to."""
        own = select(SweepMember.status).where(SweepMember.job_id == job_id)
        final = select(SweepMember.final_status).where(SweepMember.final_job_id == job_id)
        status = self.session.scalar(own) or self.session.scalar(final)
        return status is not None and status not in TERMINAL

    def events(self, job_id: str, *, after: int, limit: int) -> list[JobEvent]:
        """Events with a number above `after`, in order."""
        self.get(job_id)
        query = select(JobEvent).where(JobEvent.job_id == job_id, JobEvent.seq > after)
        return list(self.session.scalars(query.order_by(JobEvent.seq).limit(limit)))

    def log_lines(self, job_id: str, *, after: int, limit: int) -> list[JobLogLine]:
        """Log lines with an id above `after`, in order."""
        self.get(job_id)
        query = select(JobLogLine).where(JobLogLine.job_id == job_id, JobLogLine.id > after)
        return list(self.session.scalars(query.order_by(JobLogLine.id).limit(limit)))

    def before_tail(self, job_id: str, lines: int) -> int:
        """The id behind which the last so many log lines are; 0 where there are not more."""
        self.get(job_id)
        newest = select(JobLogLine.id).where(JobLogLine.job_id == job_id)
        query = newest.order_by(JobLogLine.id.desc()).offset(lines).limit(1)
        return self.session.scalar(query) or 0

    def metrics(self, job_id: str) -> list[JobMetric]:
        """All measured figures."""
        self.get(job_id)
        query = select(JobMetric).where(JobMetric.job_id == job_id)
        return list(self.session.scalars(query.order_by(JobMetric.model, JobMetric.name)))

    def layers(self, job_id: str, *, after: int, limit: int) -> list[LayerReport]:
        """Layer reports with a number above `after`, in order."""
        self.get(job_id)
        query = select(LayerReport).where(LayerReport.job_id == job_id, LayerReport.number > after)
        return list(self.session.scalars(query.order_by(LayerReport.number).limit(limit)))

    def artifact_files(self, job_id: str) -> list[ArtifactFile]:
        """The files of the finished artifact."""
        self.get(job_id)
        query = select(ArtifactFile).where(ArtifactFile.job_id == job_id)
        return list(self.session.scalars(query.order_by(ArtifactFile.path)))

    def _move(self, job_id: str, target: JobStatus, **changes: object) -> Job | None:
        """One guarded UPDATE; None if the job is not in a status that may move to `target`.

        Cancelling from `queued` and from `running` are told apart by the target; a job whose
        commit is being made stays as it is.
        """
        sources = sources_of(target) - {JobStatus.CANCELING}
        job = self.session.scalar(
            update(Job)
            .where(
                Job.id == job_id,
                Job.tenant == self.tenant,
                Job.status.in_(sources),
                Job.committing.is_(False),
            )
            .values(status=target, version=Job.version + 1, **changes)
            .returning(Job)
        )
        if job is not None:
            append_event(self.session, job, "status", {"status": target})
        return job


def remember_usage(session: Session, job: Job) -> None:
    """Keep what a job counts for in its tenant's quotas, beyond its row."""
    ran = (job.finished_at - job.started_at) if job.finished_at and job.started_at else None
    session.add(
        DeletedUsage(
            job_id=job.id, tenant=job.tenant, created_at=job.created_at,
            seconds=round(ran.total_seconds()) if ran else 0, deleted_at=now(session), finished_at=job.finished_at,
        )
    )  # fmt: skip


_GLANCE = select(
    Job.id, Job.version, Job.status, Job.created_at, Job.started_at, Job.last_event
).where(Job.id == bindparam("id"), Job.tenant == bindparam("tenant"))


def glance(connection: Connection, tenant: str, job_id: str) -> Glance:
    """Return what polling clients wait for, without the documents in the row.

    Raises:
        JobNotFoundError: as `JobRepository.get`.
    """
    if JOB_ID.fullmatch(job_id):
        row = connection.execute(_GLANCE, {"id": job_id, "tenant": tenant}).one_or_none()
        if row is not None:
            return Glance(*row)
    raise JobNotFoundError(job_id)
