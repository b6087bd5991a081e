"""How much a tenant may have, and how often a key may ask. Kept in the database, so that all API processes agree."""

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import ColumnElement, Connection, delete, func, literal, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from app.db.base import UtcDateTime
from app.db.models import ApiKey, ArtifactFile, DeletedUsage, Job, RateWindow, TenantLimits
from app.db.session import Database, clock, is_sqlite, now
from app.domain.errors import QuotaExceededError, RateLimitedError
from app.domain.job_status import TERMINAL

WINDOW_SECONDS = 60
LIMITS = ("max_active_jobs", "max_jobs_per_day", "max_minutes_per_day", "max_stored_bytes")
DAY = timedelta(days=1)
REMEMBERED = timedelta(days=30)
"""How long it is known that a job was deleted, so that what it left behind can be told from a stranger's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RateState:
    """Where a key stands in the present window."""

    allowed: int
    remaining: int
    reset_seconds: int
    counted_at: datetime
    """By the database's clock."""


def count_request(database: Database, key_id: str, allowed: int) -> RateState:
    """Count one request of a key in the present minute, whatever becomes of the request.

    It is counted by itself: in the request's transaction the row would stay locked until that ends, and
    the requests of a key would wait for one another.

    Raises:
        RateLimitedError: the minute has had as many as are allowed.
    """
    with database.single() as connection:
        moment = clock(connection)
        dialect = sqlite if is_sqlite(connection) else postgresql
        values = {"key_id": key_id, "started_at": _minute(connection, moment), "requests": 1}
        count, counted_at = connection.execute(
            dialect.insert(RateWindow)
            .values(values)
            .on_conflict_do_update(
                index_elements=["key_id", "started_at"], set_={"requests": RateWindow.requests + 1}
            )
            .returning(RateWindow.requests, moment)
        ).one()
    left = max(1, round(WINDOW_SECONDS - counted_at.timestamp() % WINDOW_SECONDS))
    if count > allowed:
        raise RateLimitedError(allowed, left)
    return RateState(
        allowed=allowed, remaining=allowed - count, reset_seconds=left, counted_at=counted_at
    )


def _minute(connection: Connection, moment: ColumnElement[datetime]) -> ColumnElement[datetime]:
    """When the minute of an instant began."""
    if is_sqlite(connection):
        return literal(datetime.now(UTC).replace(second=0, microsecond=0), UtcDateTime())
    return func.date_trunc("minute", moment, type_=UtcDateTime())


def require_room(session: Session, tenant: str) -> None:
    """Make sure that a tenant may have one more job; two requests at once see one another.

    Raises:
        QuotaExceededError: it may not.
    """
    limits = session.get(TenantLimits, tenant)
    if limits is None:
        return
    one_at_a_time(session, tenant)
    for name in LIMITS:
        allowed = getattr(limits, name)
        if allowed is not None and _used(session, tenant, name) >= allowed:
            raise QuotaExceededError(name, allowed)


def use_of(session: Session, tenant: str) -> dict[str, dict[str, float | None]]:
    """By limit, what a tenant may have and what it uses; None is unlimited."""
    limits = session.get(TenantLimits, tenant)
    return {
        name: {"limit": getattr(limits, name, None), "used": _used(session, tenant, name)}
        for name in LIMITS
    }


def _used(session: Session, tenant: str, name: str) -> float:
    """How much of a limit a tenant uses."""
    since = now(session) - DAY
    if name == "max_minutes_per_day":
        return _minutes(session, tenant, since)
    own = Job.tenant == tenant
    queries = {
        "max_active_jobs": select(func.count()).where(own, Job.status.not_in(TERMINAL)),
        "max_jobs_per_day": select(
            select(func.count()).where(own, Job.created_at > since).scalar_subquery()
            + select(func.count())
            .where(DeletedUsage.tenant == tenant, DeletedUsage.created_at > since)
            .scalar_subquery()
        ),
        "max_stored_bytes": select(func.coalesce(func.sum(ArtifactFile.bytes), 0))
        .join(Job, Job.id == ArtifactFile.job_id)
        .where(own),
    }
    return session.scalar(queries[name]) or 0


def set_limits(session: Session, tenant: str, limits: dict[str, int | None]) -> TenantLimits:
    """Change some of a tenant's limits; None lifts one."""
    found = session.get(TenantLimits, tenant) or TenantLimits(tenant=tenant)
    for name, value in limits.items():
        setattr(found, name, value)
    session.add(found)
    return found


def tenants(session: Session) -> dict[str, dict[str, int | None]]:
    """All tenants that have keys or limits, with their limits; None is unlimited."""
    limits = {row.tenant: row for row in session.scalars(select(TenantLimits))}
    names = {*limits, *session.scalars(select(ApiKey.tenant).distinct())}
    return {
        name: {limit: getattr(limits.get(name), limit, None) for limit in LIMITS}
        for name in sorted(names)
    }


def forget_old_windows(database: Database) -> None:
    """Drop counts of minutes and days that are over."""
    with database.write() as session:
        session.execute(
            delete(RateWindow).where(
                RateWindow.started_at < now(session) - timedelta(seconds=2 * WINDOW_SECONDS)
            )
        )
        session.execute(
            delete(DeletedUsage).where(
                func.coalesce(DeletedUsage.deleted_at, DeletedUsage.created_at)
                < now(session) - REMEMBERED
            )
        )


def _minutes(session: Session, tenant: str, since: datetime) -> float:
    """Minutes of runs since an instant, of those going on too."""
    moment = now(session)
    rows = session.execute(
        select(Job.started_at, Job.finished_at).where(
            Job.tenant == tenant,
            Job.started_at.is_not(None),
            (Job.finished_at.is_(None)) | (Job.finished_at > since),
        )
    )
    spans = ((finished or moment) - max(started, since) for started, finished in rows if started)
    deleted = session.scalar(
        select(func.coalesce(func.sum(DeletedUsage.seconds), 0)).where(
            DeletedUsage.tenant == tenant,
            func.coalesce(DeletedUsage.finished_at, DeletedUsage.created_at) > since,
        )
    )
    return (sum(span.total_seconds() for span in spans) + (deleted or 0)) / 60


def one_at_a_time(session: Session, tenant: str) -> None:
    """Let the requests of a tenant that count something wait for one another, until this transaction ends."""
    if not is_sqlite(session):  # which has one writer
        digest = hashlib.sha256(f"quota {tenant}".encode()).digest()
        number = int.from_bytes(digest[:8], "big", signed=True)
        session.execute(select(func.pg_advisory_xact_lock(number)))
