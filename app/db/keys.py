"""API keys: made, checked, revoked. The key itself is shown once and never stored."""

import hashlib
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import Connection, bindparam, case, func, or_, select, update
from sqlalchemy.orm import Session

from app.db.base import UtcDateTime
from app.db.models import ApiKey
from app.db.session import is_sqlite, now

SCOPES = ("jobs:read", "jobs:write")
PREFIX = "spq_"


@dataclass(frozen=True, slots=True)
class Principal:
    """Who a request speaks for."""

    key_id: str
    tenant: str
    scopes: frozenset[str]


def digest(key: str) -> str:
    """sha256 of a key. Keys carry 256 random bits, so a slow hash would add nothing."""
    return hashlib.sha256(key.encode()).hexdigest()


def create_key(
    session: Session, *, name: str, tenant: str, scopes: tuple[str, ...], days: int | None
) -> tuple[ApiKey, str]:
    """Store a new key's digest; return the row and the key."""
    secret = f"{PREFIX}{secrets.token_urlsafe(32)}"
    moment = now(session)
    row = ApiKey(
        id=f"key_{secrets.token_hex(8)}",
        tenant=tenant,
        name=name,
        key_sha256=digest(secret),
        scopes=list(scopes),
        created_at=moment,
        expires_at=None if days is None else moment + timedelta(days=days),
    )
    session.add(row)
    return row, secret


_LIVE_KEY = select(ApiKey.id, ApiKey.tenant, ApiKey.scopes, ApiKey.expires_at).where(
    ApiKey.key_sha256 == bindparam("digest"), ApiKey.revoked_at.is_(None)
)  # fmt: skip
_MOMENT = {True: bindparam("moment", type_=UtcDateTime()), False: func.clock_timestamp()}
_KEY_NOW = {
    sqlite: _LIVE_KEY.where(or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > moment))
    for sqlite, moment in _MOMENT.items()
}
"""Made once: every request runs it. By whether the database is SQLite, which has no clock."""


def find_principal(connection: Session | Connection, key: str) -> Principal | None:
    """Whom a key speaks for; None if it is unknown, expired or revoked."""
    sqlite = is_sqlite(connection)
    values = {"digest": digest(key)} | ({"moment": datetime.now(UTC)} if sqlite else {})
    row = connection.execute(_KEY_NOW[sqlite], values).one_or_none()
    return None if row is None else Principal(row.id, row.tenant, frozenset(row.scopes))


def revoke_key(session: Session, key_id: str) -> bool:
    """Make a key useless; False if there is no such live key."""
    revoked = session.scalar(
        update(ApiKey)
        .where(ApiKey.id == key_id, ApiKey.revoked_at.is_(None))
        .values(revoked_at=now(session))
        .returning(ApiKey.id)
    )
    return revoked is not None


def rotate_key(session: Session, key_id: str, *, hours: int) -> tuple[ApiKey, str] | None:
    """A new key for whom a live one speaks, until when that one would have spoken; the old one expires in `hours`.

    None if it is not live.
    """
    until = now(session) + timedelta(hours=hours)
    ends = session.scalar(select(ApiKey.expires_at).where(ApiKey.id == key_id))
    old = session.scalar(
        update(ApiKey)
        .where(
            ApiKey.id == key_id,
            ApiKey.revoked_at.is_(None),
            or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > now(session)),
        )
        .values(expires_at=case((ApiKey.expires_at < until, ApiKey.expires_at), else_=until))
        .returning(ApiKey)
    )
    if old is None:
        return None
    row, key = create_key(
        session, name=old.name, tenant=old.tenant, scopes=tuple(old.scopes), days=None
    )
    row.expires_at = ends
    return row, key


def list_keys(session: Session) -> list[ApiKey]:
    """All keys, oldest first."""
    return list(session.scalars(select(ApiKey).order_by(ApiKey.created_at)))


def key_state(key: ApiKey, moment: datetime) -> str:
    """`live`, `revoked` or `expired`."""
    if key.revoked_at is not None:
        return "revoked"
    expired = key.expires_at is not None and key.expires_at <= moment
    return "expired" if expired else "live"
