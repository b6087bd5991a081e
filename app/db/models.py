"""The tables. Rules the database can keep are constraints, not code."""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Index, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from app.db.base import Base
from app.domain.job_status import OWNED, TERMINAL, JobStatus


def _sql_list(statuses: frozenset[JobStatus]) -> str:
    return ", ".join(f"'{status}'" for status in sorted(statuses))


class ApiKey(Base):
    """A bearer key; only its digest is stored."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    tenant: Mapped[str] = mapped_column(String(64), index=True)
    name: Mapped[str] = mapped_column(String(64))
    key_sha256: Mapped[str] = mapped_column(String(64), unique=True)
    scopes: Mapped[list[str]]
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]


class Job(Base):
    """One request to compress one model, and where it stands."""

    __tablename__ = "jobs"
    __table_args__ = (
        CheckConstraint(f"status IN ({_sql_list(frozenset(JobStatus))})", name="status_known"),
        CheckConstraint(
            f"(finished_at IS NOT NULL) = (status IN ({_sql_list(TERMINAL)}))",
            name="finished_iff_terminal",
        ),
        CheckConstraint(
            f"(lease_expires_at IS NOT NULL) = (status IN ({_sql_list(OWNED)}))",
            name="leased_iff_owned",
        ),
        CheckConstraint("attempt BETWEEN 0 AND max_attempts", name="attempt_in_range"),
        CheckConstraint("status <> 'failed' OR error IS NOT NULL", name="failure_has_error"),
        Index(None, "tenant", "created_at", "id"),
        Index(None, "tenant", "status", "created_at", "id"),
        Index(None, "tenant", "model_name", "created_at", "id"),
        Index(None, "status", "lease_expires_at"),
    )

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    tenant: Mapped[str] = mapped_column(String(64))
    status: Mapped[str] = mapped_column(String(16))
    stage: Mapped[str | None] = mapped_column(String(64))
    version: Mapped[int]
    """Grows with every change a client can see; the ETag."""
    last_event: Mapped[int]
    """Number of the newest event; the next one takes this plus one in the same UPDATE."""
    attempt: Mapped[int]
    """The fencing number: a write by an attempt counts only while it is the current one."""
    max_attempts: Mapped[int]
    request: Mapped[dict[str, Any]]
    recipe: Mapped[dict[str, Any]]
    recipe_sha256: Mapped[str] = mapped_column(String(64))
    model_name: Mapped[str] = mapped_column(String(256))
    source_commit: Mapped[str | None] = mapped_column(String(64))
    progress: Mapped[dict[str, Any] | None]
    result: Mapped[dict[str, Any] | None]
    error: Mapped[dict[str, Any] | None]
    worker_id: Mapped[str | None] = mapped_column(String(128))
    committing: Mapped[bool]
    """The publish commit may already be under way: too late to cancel."""
    cancel_requested_at: Mapped[datetime | None]
    lease_expires_at: Mapped[datetime | None]
    announced_at: Mapped[datetime | None]
    created_at: Mapped[datetime]
    start_before: Mapped[datetime | None]
    """A job still queued then fails."""
    max_runtime_seconds: Mapped[int | None]
    """Of all attempts together, from the first one's start."""
    retry_of: Mapped[str | None] = mapped_column(String(40))
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    artifact_expired_at: Mapped[datetime | None]
    """Its files were removed from the store, for their age."""
    last_attempt: Mapped[dict[str, Any] | None]
    """Which attempt ended without a result last, why and when."""
    bytes_ratio: Mapped[float | None]
    """Headline figures of the result, for lists: its bytes over the source's."""
    kl: Mapped[float | None]
    perplexity_ratio: Mapped[float | None]
    traceparent: Mapped[str | None] = mapped_column(String(64))
    """The trace of the request that made it (W3C), for spans of its attempts."""
    sweep_id: Mapped[str | None] = mapped_column(String(40), index=True)
    sweep_member: Mapped[int | None]
    """The sweep that it is a member of, and which."""


class JobSecret(Base):
    """A job's own Hub token, sealed; gone when the job has ended."""

    __tablename__ = "job_secrets"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    sealed: Mapped[str] = mapped_column(Text)


class WorkerPresence(Base):
    """A worker that was there recently, and what it is."""

    __tablename__ = "workers"

    id: Mapped[str] = mapped_column(String(128), primary_key=True)
    seen_at: Mapped[datetime]
    facts: Mapped[dict[str, Any]]


class IdempotentAnswer(Base):
    """What a request with an Idempotency-Key was answered."""

    __tablename__ = "idempotent_answers"

    tenant: Mapped[str] = mapped_column(String(64), primary_key=True)
    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    request_sha256: Mapped[str] = mapped_column(String(64))
    answer: Mapped[dict[str, Any]]
    created_at: Mapped[datetime] = mapped_column(index=True)


class JobEvent(Base):
    """Append-only history of a job; numbers have no gap."""

    __tablename__ = "job_events"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[datetime]
    attempt: Mapped[int]
    type: Mapped[str] = mapped_column(String(16))
    data: Mapped[dict[str, Any]]


class JobLogLine(Base):
    """Text a runner wrote."""

    __tablename__ = "job_log_lines"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), index=True)
    attempt: Mapped[int]
    at: Mapped[datetime]
    text: Mapped[str] = mapped_column(Text)


class JobMetric(Base):
    """One measured figure of one model of a job."""

    __tablename__ = "job_metrics"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    model: Mapped[str] = mapped_column(String(32), primary_key=True)
    """source, int8 or result."""
    name: Mapped[str] = mapped_column(String(160), primary_key=True)
    dataset: Mapped[str] = mapped_column(String(64))
    value: Mapped[float]


class LayerReport(Base):
    """What one stage did to one matrix."""

    __tablename__ = "layer_reports"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    layer: Mapped[str] = mapped_column(String(256))
    stage: Mapped[str] = mapped_column(String(16))
    applied: Mapped[bool]
    reason: Mapped[str] = mapped_column(Text)
    figures: Mapped[dict[str, Any]]


class ArtifactFile(Base):
    """One file of a finished job's artifact."""

    __tablename__ = "artifact_files"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    path: Mapped[str] = mapped_column(String(256), primary_key=True)
    bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(String(64))


class TenantLimits(Base):
    """What a tenant may have; null is without limit, and so is a tenant without a row."""

    __tablename__ = "tenant_limits"

    tenant: Mapped[str] = mapped_column(String(64), primary_key=True)
    max_active_jobs: Mapped[int | None]
    """Queued and running."""
    max_jobs_per_day: Mapped[int | None]
    max_minutes_per_day: Mapped[int | None]
    """Of runs, in the last 24 hours."""
    max_stored_bytes: Mapped[int | None] = mapped_column(BigInteger)
    """Of artifacts in the service's store."""


class DeletedUsage(Base):
    """What a deleted job counts for in its tenant's quotas of a day, and that it was deleted."""

    __tablename__ = "deleted_usage"

    job_id: Mapped[str] = mapped_column(String(40), primary_key=True)
    tenant: Mapped[str] = mapped_column(String(64), index=True)
    created_at: Mapped[datetime]
    seconds: Mapped[int]
    deleted_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    """Both None in rows of versions before they were kept."""


class RateWindow(Base):
    """How many requests a key made in one minute."""

    __tablename__ = "rate_windows"

    key_id: Mapped[str] = mapped_column(String(40), primary_key=True)
    started_at: Mapped[datetime] = mapped_column(primary_key=True)
    requests: Mapped[int]


class StoredTally(Base):
    """A number of a metric that API and workers add to."""

    __tablename__ = "tallies"

    metric: Mapped[str] = mapped_column(String(64), primary_key=True)
    labels: Mapped[str] = mapped_column(String(256), primary_key=True)
    """A JSON list."""
    value: Mapped[float]


class WebhookSecret(Base):
    """What a tenant's webhook messages are signed with; sealed."""

    __tablename__ = "webhook_secrets"

    tenant: Mapped[str] = mapped_column(String(64), primary_key=True)
    sealed: Mapped[str] = mapped_column(Text)
    previous: Mapped[str | None] = mapped_column(Text)
    previous_until: Mapped[datetime | None]
    created_at: Mapped[datetime]


class WebhookDelivery(Base):
    """A message to a client's webhook. It outlives its job, until it is delivered or given up."""

    __tablename__ = "webhook_deliveries"
    __table_args__ = (Index(None, "tenant", "created_at", "id"),)

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    tenant: Mapped[str] = mapped_column(String(64))
    job_id: Mapped[str] = mapped_column(String(40), index=True)
    url: Mapped[str] = mapped_column(Text)
    type: Mapped[str] = mapped_column(String(32))
    payload: Mapped[dict[str, Any]]
    tries: Mapped[int]
    created_at: Mapped[datetime]
    next_try_at: Mapped[datetime | None] = mapped_column(index=True)
    delivered_at: Mapped[datetime | None]
    last_status: Mapped[int | None]
    last_error: Mapped[str | None] = mapped_column(String(200))


class KnownFigure(Base):
    """A file of figures of a source or of plain INT8, for workers on other machines."""

    __tablename__ = "known_figures"

    source: Mapped[str] = mapped_column(String(64), primary_key=True)
    digest: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(String(80), primary_key=True)
    content: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(index=True)


class OutboxMessage(Base):
    """A message to send to the queue, written in the transaction that made it necessary."""

    __tablename__ = "outbox"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), index=True)
    created_at: Mapped[datetime]
    not_before: Mapped[datetime]
    tries: Mapped[int]
