"""Messages to clients' webhooks: written with what they tell, kept until they are delivered or given up."""

import secrets
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

from sqlalchemy import delete, func, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app.db.models import Job, WebhookDelivery, WebhookSecret
from app.db.session import Database, now
from app.domain.errors import DeliveryNotFoundError
from app.domain.job_status import JobStatus

TYPES = {
    JobStatus.RUNNING: "job.started",
    JobStatus.SUCCEEDED: "job.succeeded",
    JobStatus.FAILED: "job.failed",
    JobStatus.CANCELED: "job.canceled",
}
PAUSES_SECONDS = (5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400)
"""Before each further try, as the Standard Webhooks specification proposes."""
CLAIM_SECONDS = 120
"""A delivery whose sender died is sent again after so long."""
AT_ONE_TENANT, AT_ONE_HOST = 4, 2
"""At the same time, of one process; those that do not answer leave room for the others."""
LOOKED_AT, OF_ONE_TENANT = 400, 50
KEPT_DAYS = 30
LONGEST_PAUSE_SECONDS = 86_400
KEPT_SECRET = timedelta(hours=24)


@dataclass(frozen=True, slots=True, kw_only=True)
class Due:
    """A delivery to make now."""

    id: str
    tenant: str
    url: str
    payload: dict[str, Any]
    tries: int


def enqueue(session: Session, job: Job, status: str) -> None:
    """Tell the job's webhook, if it has one that wants to know, in the transaction of the change."""
    hook = job.request.get("webhook")
    kind = TYPES.get(JobStatus(status))
    if hook is None or kind is None or kind not in hook["events"]:
        return
    data = {
        "id": job.id,
        "status": status,
        "attempt": job.attempt,
        "model": job.model_name,
        "labels": job.request.get("labels", {}),
        "url": f"/jobs/{job.id}",
    }
    enqueue_message(session, tenant=job.tenant, about=job.id, url=hook["url"], kind=kind, data=data)


def enqueue_message(
    session: Session, *, tenant: str, about: str, url: str, kind: str, data: dict[str, Any]
) -> None:
    """Have a message delivered.

    Args:
        about: the job or the sweep.
    """
    moment = now(session)
    session.add(
        WebhookDelivery(
            id=f"msg_{secrets.token_hex(16)}",
            tenant=tenant,
            job_id=about,
            url=url,
            type=kind,
            payload={"type": kind, "timestamp": moment.isoformat(), "data": data},
            created_at=moment,
            next_try_at=moment,
            tries=0,
        )
    )


def claim_due(database: Database, places: int, on_their_way: Sequence[Due] = ()) -> list[Due]:
    """Deliveries to make now; no other sender gets them for a while. Tenants take turns.

    Args:
        places: how many at most.
        on_their_way: those this process is making already, which count for their tenant and host.
    """
    with database.write() as session:
        moment = now(session)
        due = WebhookDelivery.next_try_at <= moment
        turn = func.row_number().over(
            partition_by=WebhookDelivery.tenant, order_by=WebhookDelivery.next_try_at
        )
        turns = select(WebhookDelivery.id, turn.label("turn")).where(due).subquery()
        query = (
            select(WebhookDelivery)
            .join(turns, turns.c.id == WebhookDelivery.id)
            .where(
                due, turns.c.turn <= OF_ONE_TENANT
            )  # `due` again: of the row as it is when locked
            .order_by(turns.c.turn, WebhookDelivery.next_try_at)
            .limit(LOOKED_AT)
            .with_for_update(of=WebhookDelivery, skip_locked=True)
        )
        rows = _in_turns(list(session.scalars(query)), places, on_their_way)
        for row in rows:
            row.tries += 1
            row.next_try_at = moment + timedelta(seconds=CLAIM_SECONDS)
        return [
            Due(id=row.id, tenant=row.tenant, url=row.url, payload=row.payload, tries=row.tries)
            for row in rows
        ]


def _in_turns(
    waiting: list[WebhookDelivery], places: int, on_their_way: Sequence[Due]
) -> list[WebhookDelivery]:
    """Who has the fewest messages on their way is next, and nobody takes the last places for a further one."""
    tenants = Counter(one.tenant for one in on_their_way)
    hosts = Counter((one.tenant, _host(one.url)) for one in on_their_way)
    chosen: list[WebhookDelivery] = []
    while len(chosen) < places:
        left = places - len(chosen)
        allowed = [
            row for row in waiting
            if tenants[row.tenant] < min(AT_ONE_TENANT, left) and hosts[row.tenant, _host(row.url)] < AT_ONE_HOST
        ]  # fmt: skip
        if not allowed:
            break
        row = min(allowed, key=lambda one: (tenants[one.tenant], one.next_try_at))
        tenants[row.tenant] += 1
        hosts[row.tenant, _host(row.url)] += 1
        waiting.remove(row)
        chosen.append(row)
    return chosen


def _host(url: str) -> str:
    return urlsplit(url).netloc


def delivered(database: Database, due: Due, status: int) -> None:
    """The endpoint took it."""
    with database.write() as session:
        _set(session, due, delivered_at=now(session), next_try_at=None, last_status=status, last_error=None)  # fmt: skip


def failed(
    database: Database,
    due: Due,
    *,
    status: int | None,
    error: str,
    retry_after: float,
    jitter: float,
) -> None:
    """The endpoint did not take it: another try later, or none any more.

    Args:
        retry_after: seconds the endpoint asked to wait. jitter: 0.9 to 1.1.
    """
    with database.write() as session:
        again: datetime | None = None
        if due.tries <= len(PAUSES_SECONDS):
            pause = max(
                PAUSES_SECONDS[due.tries - 1] * jitter, min(retry_after, LONGEST_PAUSE_SECONDS)
            )
            again = now(session) + timedelta(seconds=pause)
        clean = error.replace("\0", "")[:200]
        _set(session, due, next_try_at=again, last_status=status, last_error=clean)


def gone(database: Database, due: Due) -> None:
    """The endpoint said that it is gone for good (410): nothing waits for it any more."""
    with database.write() as session:
        session.execute(
            update(WebhookDelivery)
            .where(
                WebhookDelivery.tenant == due.tenant,
                WebhookDelivery.url == due.url,
                WebhookDelivery.delivered_at.is_(None),
            )
            .values(next_try_at=None, last_status=410, last_error="the endpoint is gone")
        )


def resend(session: Session, tenant: str, delivery_id: str) -> WebhookDelivery:
    """Deliver again, with all tries before it.

    Raises:
        DeliveryNotFoundError: there is none, or it is another tenant's.
    """
    found = session.scalar(
        select(WebhookDelivery).where(
            WebhookDelivery.id == delivery_id, WebhookDelivery.tenant == tenant
        )
    )
    if found is None:
        raise DeliveryNotFoundError(delivery_id)
    found.tries, found.next_try_at, found.delivered_at = 0, now(session), None
    return found


def page(
    session: Session, tenant: str, *, job_id: str | None, after: str | None, limit: int
) -> list[WebhookDelivery]:
    """A tenant's deliveries, newest first, behind the delivery `after`."""
    query = select(WebhookDelivery).where(WebhookDelivery.tenant == tenant)
    if job_id is not None:
        query = query.where(WebhookDelivery.job_id == job_id)
    if after is not None:
        last = session.get(WebhookDelivery, after)
        if last is None or last.tenant != tenant:
            raise DeliveryNotFoundError(after)
        query = query.where(
            (WebhookDelivery.created_at < last.created_at)
            | ((WebhookDelivery.created_at == last.created_at) & (WebhookDelivery.id < last.id))
        )
    ordered = query.order_by(WebhookDelivery.created_at.desc(), WebhookDelivery.id.desc())
    return list(session.scalars(ordered.limit(limit)))


def forget_old_deliveries(database: Database) -> None:
    """Drop messages that were settled long ago."""
    with database.write() as session:
        session.execute(
            delete(WebhookDelivery).where(
                WebhookDelivery.next_try_at.is_(None),
                WebhookDelivery.created_at < now(session) - timedelta(days=KEPT_DAYS),
            )
        )


def secret_of(session: Session, tenant: str, fresh: str) -> WebhookSecret:
    """A tenant's sealed signing secret; `fresh` becomes it if there is none."""
    found = session.get(WebhookSecret, tenant)
    if found is None:
        found = WebhookSecret(tenant=tenant, sealed=fresh, created_at=now(session))
        try:
            with session.begin_nested():
                session.add(found)
        except IntegrityError:  # another request made it in this moment
            found = session.get_one(WebhookSecret, tenant)
    return found


def rotate_secret(session: Session, tenant: str, fresh: str) -> WebhookSecret:
    """Change it; for a day messages carry a signature by the old one too."""
    found = secret_of(session, tenant, fresh)
    if found.sealed != fresh:
        found.previous, found.previous_until = found.sealed, now(session) + KEPT_SECRET
        found.sealed, found.created_at = fresh, now(session)
    return found


def _set(session: Session, due: Due, **values: object) -> None:
    """Record an outcome, unless a later try or a resend has made it old."""
    session.execute(
        update(WebhookDelivery)
        .where(
            WebhookDelivery.id == due.id,
            WebhookDelivery.tries == due.tries,
            WebhookDelivery.delivered_at.is_(None),
        )
        .values(**values)
    )
