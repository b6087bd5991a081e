"""API keys: made, checked, revoked. The key itself is shown once and never stored."""

import hashlib
import secrets
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import case, or_, select, update
from sqlalchemy.orm import Session

from app.db.models import ApiKey
from app.db.session import clock, now

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


def find_principal(session: Session, key: str) -> Principal | None:
    """Whom a key speaks for; None if it is unknown, expired or revoked."""
    row = session.execute(
        select(ApiKey.id, ApiKey.tenant, ApiKey.scopes).where(
            ApiKey.key_sha256 == digest(key),
            ApiKey.revoked_at.is_(None),
            or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > clock(session)),
        )
    ).one_or_none()
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
