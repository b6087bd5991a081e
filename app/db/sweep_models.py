"""The tables of sweeps."""

from datetime import datetime
from typing import Any

from sqlalchemy import CheckConstraint, ForeignKey, Index, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from app.db.base import Base
from app.domain.sweep_status import ENDED, SweepStatus


def _sql_list(statuses: frozenset[SweepStatus]) -> str:
    return ", ".join(f"'{status}'" for status in sorted(statuses))


class SweepRow(Base):
    """One request to compare many recipes on one model, and where it stands."""

    __tablename__ = "sweeps"
    __table_args__ = (
        CheckConstraint(
            f"status IN ({_sql_list(frozenset(SweepStatus))})", name="sweep_status_known"
        ),
        CheckConstraint(
            f"(finished_at IS NOT NULL) = (status IN ({_sql_list(ENDED)}))",
            name="sweep_finished_iff_ended",
        ),
        Index(None, "tenant", "created_at", "id"),
        Index(None, "status"),
    )

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    tenant: Mapped[str] = mapped_column(String(64))
    status: Mapped[str] = mapped_column(String(16))
    version: Mapped[int]
    """Grows with every change a client can see; the ETag."""
    last_event: Mapped[int]
    request: Mapped[dict[str, Any]]
    sweep: Mapped[dict[str, Any]]
    """The document, resolved."""
    model_name: Mapped[str] = mapped_column(String(256))
    source_commit: Mapped[str | None] = mapped_column(String(64))
    """What all members are made of, once it is known."""
    max_parallel: Mapped[int]
    beside: Mapped[dict[str, Any]]
    """Figures of the source and of plain INT8."""
    waits_for: Mapped[str | None] = mapped_column(String(200))
    """Why no member is released, where that is not for its own members."""
    sealed_token: Mapped[str | None] = mapped_column(Text)
    """The client's own Hub token; gone when the sweep has ended."""
    created_at: Mapped[datetime]
    finished_at: Mapped[datetime | None]
    estimated_finish_at: Mapped[datetime | None]
    traceparent: Mapped[str | None] = mapped_column(String(64))


class SweepMember(Base):
    """One recipe of a sweep, and what became of it; its figures outlive its job."""

    __tablename__ = "sweep_members"

    sweep_id: Mapped[str] = mapped_column(
        ForeignKey("sweeps.id", ondelete="CASCADE"), primary_key=True
    )
    number: Mapped[int] = mapped_column(primary_key=True)
    fields: Mapped[dict[str, Any]]
    recipe: Mapped[dict[str, Any]]
    recipe_sha256: Mapped[str] = mapped_column(String(64))
    estimate: Mapped[dict[str, Any] | None]
    status: Mapped[str] = mapped_column(String(16))
    stopped: Mapped[str | None] = mapped_column(String(16))
    """Why it was not made."""
    job_id: Mapped[str | None] = mapped_column(String(40), index=True)
    row: Mapped[dict[str, Any] | None]
    """Figures of its artifact."""
    error: Mapped[dict[str, Any] | None]
    final_job_id: Mapped[str | None] = mapped_column(String(40), index=True)
    """The job that measures it once more when all members have ended."""
    final_status: Mapped[str | None] = mapped_column(String(16))
    final: Mapped[dict[str, Any] | None]
    """What that job came to."""


class SweepEvent(Base):
    """Append-only history of a sweep; numbers have no gap."""

    __tablename__ = "sweep_events"

    sweep_id: Mapped[str] = mapped_column(
        ForeignKey("sweeps.id", ondelete="CASCADE"), primary_key=True
    )
    seq: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[datetime]
    type: Mapped[str] = mapped_column(String(16))
    data: Mapped[dict[str, Any]]
