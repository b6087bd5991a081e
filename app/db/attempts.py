"""What a worker may do to a job, each write guarded by the attempt number (the fence)."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum, auto
from typing import Any

from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session

from app.db.events import append_event
from app.db.models import (
    ArtifactFile,
    Job,
    JobLogLine,
    JobMetric,
    JobSecret,
    LayerReport,
    OutboxMessage,
)
from app.db.session import Database, now
from app.domain.errors import FencedError
from app.domain.job_status import OWNED, JobStatus
from spq_core.evaluation.verdict import headline


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A job that this process owns until its lease ends."""

    job_id: str
    attempt: int
    max_attempts: int
    request: dict[str, Any]
    recipe: dict[str, Any]
    tenant: str = ""
    sealed_token: str | None = None
    """The client's own Hub token."""
    traceparent: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedFile:
    """A file of the result."""

    path: str
    bytes: int
    sha256: str


def claim(database: Database, job_id: str, worker_id: str, lease_seconds: float) -> Claim | None:
    """Take a queued job; None if it is not queued (claimed elsewhere, canceled, finished).

    The WHERE clause is the lock: a message delivered fifty times has one winner.
    """
    with database.write() as session:
        _lock(session, job_id)
        moment = now(session)
        job = session.scalar(
            update(Job)
            .where(Job.id == job_id, Job.status == JobStatus.QUEUED, Job.attempt < Job.max_attempts)
            .values(
                status=JobStatus.RUNNING,
                stage="starting",
                attempt=Job.attempt + 1,
                version=Job.version + 1,
                worker_id=worker_id,
                progress=None,
                started_at=func.coalesce(Job.started_at, moment),
                lease_expires_at=moment + timedelta(seconds=lease_seconds),
            )
            .returning(Job)
        )
        if job is None:
            return None
        append_event(session, job, "status", {"status": JobStatus.RUNNING, "worker_id": worker_id})
        return Claim(
            job_id=job.id,
            attempt=job.attempt,
            max_attempts=job.max_attempts,
            request=job.request,
            recipe=job.recipe,
            tenant=job.tenant,
            sealed_token=session.scalar(select(JobSecret.sealed).where(JobSecret.job_id == job.id)),
            traceparent=job.traceparent,
        )


RETRY_IMMEDIATELY = frozenset({"worker_lost", "worker_stopped", "runner_crashed", "stalled"})
"""Reasons that say nothing about the next attempt; after others (the Hub is away) it waits."""
PAUSE_SECONDS = 5
LONGEST_PAUSE_SECONDS = 1800


class LeaseReply(Enum):
    """What a job's client wants of the attempt that has it."""

    CONTINUE = auto()
    CANCEL = auto()
    DEADLINE = auto()
    """Its time is up."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """Writes of one attempt. Every method raises FencedError once the attempt lost its job."""

    database: Database
    claim: Claim

    def renew(self, lease_seconds: float) -> LeaseReply:
        """Extend the lease; return what the client wants of this attempt."""
        with self.database.write() as session:
            _lock(session, self.claim.job_id)
            moment = now(session)
            job = self._update(session, lease_expires_at=moment + timedelta(seconds=lease_seconds))
            if job.status == JobStatus.CANCELING:
                return LeaseReply.CANCEL
            limit, started = job.max_runtime_seconds, job.started_at
            if limit is None or started is None or job.committing:
                return LeaseReply.CONTINUE
            return (
                LeaseReply.DEADLINE
                if moment > started + timedelta(seconds=limit)
                else LeaseReply.CONTINUE
            )

    def progress(
        self,
        stage: str,
        progress: dict[str, Any],
        *,
        stage_left: float | None = None,
        run_left: float | None = None,
    ) -> None:
        """Show where the run is, with the seconds it may take, and keep it as an event."""
        with self.database.write() as session:
            moment = now(session)
            progress |= {
                "updated_at": moment.isoformat(),
                "stage_ends_at": _after(moment, stage_left),
                "estimated_finish_at": _after(moment, run_left),
            }
            job = self._update(session, stage=stage, progress=progress, version=Job.version + 1)
            told = {name: value for name, value in progress.items() if name != "stages"}
            append_event(session, job, "progress", {"stage": stage, **told})

    def source_commit(self, commit: str) -> None:
        """Note the commit the model was fetched at."""
        with self.database.write() as session:
            self._update(session, source_commit=commit, version=Job.version + 1)

    def log(self, lines: list[str]) -> None:
        """Keep text the runner wrote."""
        with self.database.write() as session:
            self._update(session)
            moment = now(session)
            session.add_all(
                JobLogLine(
                    job_id=self.claim.job_id, attempt=self.claim.attempt, at=moment, text=line
                )
                for line in lines
            )

    def begin_commit(self) -> None:
        """From here on the job cannot be canceled: the commit may exist.

        Raises:
            FencedError: it was canceled or lost before.
        """
        with self.database.write() as session:
            self._update(
                session,
                only=frozenset({JobStatus.RUNNING}),
                committing=True,
                version=Job.version + 1,
            )

    def succeed(
        self,
        *,
        result: dict[str, Any],
        layers: list[dict[str, Any]],
        metrics: list[dict[str, Any]],
        files: list[FinishedFile],
    ) -> None:
        """Record every figure and end the job, in one transaction."""
        with self.database.write() as session:
            job = self._end(session, JobStatus.SUCCEEDED, result=result, **headline(result))
            self._replace_findings(session, layers, metrics)
            self._add_files(session, files)
            append_event(session, job, "status", {"status": JobStatus.SUCCEEDED})

    def fail(
        self,
        error: dict[str, Any],
        *,
        result: dict[str, Any] | None = None,
        layers: list[dict[str, Any]] | None = None,
        metrics: list[dict[str, Any]] | None = None,
        files: list[FinishedFile] | None = None,
    ) -> None:
        """End the job with an error; what was found out before it is kept."""
        with self.database.write() as session:
            figures = headline(result or {})
            job = self._end(session, JobStatus.FAILED, error=error, result=result, **figures)
            self._replace_findings(session, layers or [], metrics or [])
            self._add_files(session, files or [])
            append_event(session, job, "status", {"status": JobStatus.FAILED, "error": error})

    def cancel(self) -> None:
        """End a job whose client asked for it."""
        with self.database.write() as session:
            job = self._end(session, JobStatus.CANCELED, only=frozenset({JobStatus.CANCELING}))
            append_event(session, job, "status", {"status": JobStatus.CANCELED})

    def give_back(
        self, reason: str, *, counted: bool = True, files: Sequence[FinishedFile] = ()
    ) -> bool:
        """Queue the job again, or fail it when no attempt is left; return whether it is queued.

        Args:
            counted: whether this attempt is one of those the job has.
            files: of an artifact that is in the store; they stay to be had if the job fails.
        """
        with self.database.write() as session:
            job = session.scalar(select(Job).where(Job.id == self.claim.job_id).with_for_update())
            if job is None or job.attempt != self.claim.attempt or job.status not in OWNED:
                raise FencedError(self.claim.job_id, self.claim.attempt)
            if not counted:
                job.max_attempts += 1
            queued = release(session, job, reason)
            if not queued:
                self._add_files(session, list(files))
            return queued

    def _end(
        self,
        session: Session,
        status: JobStatus,
        *,
        only: frozenset[JobStatus] = frozenset({JobStatus.RUNNING}),
        **changes: object,
    ) -> Job:
        return self._update(
            session,
            only=only,
            status=status,
            stage=None,
            finished_at=now(session),
            lease_expires_at=None,
            committing=False,
            version=Job.version + 1,
            **changes,
        )

    def _update(
        self, session: Session, *, only: frozenset[JobStatus] = OWNED, **changes: object
    ) -> Job:
        job: Job | None = session.scalar(
            update(Job)
            .where(
                Job.id == self.claim.job_id,
                Job.attempt == self.claim.attempt,
                Job.status.in_(only),
            )
            .values(**(changes or {"attempt": Job.attempt}))
            .returning(Job)
        )
        if job is None:
            raise FencedError(self.claim.job_id, self.claim.attempt)
        return job

    def _add_files(self, session: Session, files: list[FinishedFile]) -> None:
        job_id = self.claim.job_id
        session.add_all(
            ArtifactFile(job_id=job_id, path=file.path, bytes=file.bytes, sha256=file.sha256)
            for file in files
        )

    def _replace_findings(
        self, session: Session, layers: list[dict[str, Any]], metrics: list[dict[str, Any]]
    ) -> None:
        job_id = self.claim.job_id
        session.execute(delete(LayerReport).where(LayerReport.job_id == job_id))
        session.execute(delete(JobMetric).where(JobMetric.job_id == job_id))
        session.add_all(
            LayerReport(job_id=job_id, number=number, **report)
            for number, report in enumerate(layers, start=1)
        )
        session.add_all(JobMetric(job_id=job_id, **metric) for metric in metrics)


def _lock(session: Session, job_id: str) -> None:
    """Wait for a job's row before the time is read: a lease counts from when it is written."""
    session.execute(select(Job.id).where(Job.id == job_id).with_for_update())


def announce(session: Session, job_id: str, at: datetime) -> None:
    """Have a job announced at a time."""
    session.add(OutboxMessage(job_id=job_id, created_at=now(session), not_before=at, tries=0))


def release(session: Session, job: Job, reason: str) -> bool:
    """Take a job from its attempt: queued again, or terminal. The caller holds the row lock.

    A job being canceled ends canceled; one without attempts left fails with `reason` as code.
    """
    moment = now(session)
    job.last_attempt = {"number": job.attempt, "reason": reason, "ended_at": moment.isoformat()}
    job.lease_expires_at = None
    job.worker_id = None
    job.stage = None
    job.version += 1
    if job.status == JobStatus.CANCELING:
        job.status, job.finished_at = JobStatus.CANCELED, moment
    elif job.attempt < job.max_attempts:
        # `committing` stays: a lost attempt may have made its commit, so the job must not end
        # canceled; the next attempt looks for that commit first.
        job.status, job.announced_at = JobStatus.QUEUED, None
        pause = timedelta(seconds=0)
        if reason not in RETRY_IMMEDIATELY:
            pause = timedelta(seconds=min(LONGEST_PAUSE_SECONDS, PAUSE_SECONDS * 4**job.attempt))
        announce(session, job.id, moment + pause)
    else:
        job.status, job.finished_at = JobStatus.FAILED, moment
        job.error = {
            "code": reason,
            "message": f"the job ended {job.attempt} attempts without a result ({reason})",
            "retryable": True,
        }
    session.flush()
    error = {"error": job.error} if job.status == JobStatus.FAILED else {}
    append_event(session, job, "status", {"status": job.status, "reason": reason, **error})
    return job.status == JobStatus.QUEUED


def _after(moment: datetime, seconds: float | None) -> str | None:
    return None if seconds is None else (moment + timedelta(seconds=seconds)).isoformat()
