"""Sessions of browsers, and codes that begin one. Of both only digests are stored."""

import secrets
from datetime import datetime, timedelta

from sqlalchemy import ForeignKey, String, delete, select
from sqlalchemy.orm import Mapped, Session, mapped_column

from app.db.base import Base
from app.db.keys import Principal, digest
from app.db.models import ApiKey
from app.db.session import Database, now

SESSION_SECONDS = 12 * 3600
CODE_SECONDS = 600


class BrowserSession(Base):
    """A browser that showed a key; it ends with the key."""

    __tablename__ = "sessions"

    sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    key_id: Mapped[str] = mapped_column(ForeignKey("api_keys.id", ondelete="CASCADE"), index=True)
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime]


class LoginCode(Base):
    """Begins one session for whom its key speaks."""

    __tablename__ = "login_codes"

    sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    key_id: Mapped[str] = mapped_column(ForeignKey("api_keys.id", ondelete="CASCADE"), index=True)
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime]


def begin_session(session: Session, key_id: str) -> str:
    """Store a session; return its secret, 256 random bits."""
    secret = secrets.token_urlsafe(32)
    session.add(_row(session, BrowserSession, secret, key_id, SESSION_SECONDS))
    return secret


def make_code(session: Session, key_id: str) -> str:
    """Store a code that serves once, within ten minutes; return it."""
    secret = secrets.token_urlsafe(32)
    session.add(_row(session, LoginCode, secret, key_id, CODE_SECONDS))
    return secret


def redeem_code(session: Session, code: str) -> str | None:
    """Take a code; return the key's id, or None if it was taken before, is too old or unknown."""
    used = (
        delete(LoginCode)
        .where(LoginCode.sha256 == digest(code))
        .returning(LoginCode.key_id, LoginCode.expires_at)
    )
    row = session.execute(used).one_or_none()
    return None if row is None or row.expires_at <= now(session) else str(row.key_id)


def session_principal(session: Session, secret: str) -> Principal | None:
    """Whom a session speaks for; None if it has ended, or its key has."""
    moment = now(session)
    query = (
        select(ApiKey)
        .join(BrowserSession, BrowserSession.key_id == ApiKey.id)
        .where(BrowserSession.sha256 == digest(secret), BrowserSession.expires_at > moment)
    )
    return _principal(session.scalar(query), moment)


def key_principal(session: Session, key_id: str) -> Principal | None:
    """Whom a live key speaks for."""
    return _principal(session.get(ApiKey, key_id), now(session))


def end_session(session: Session, secret: str) -> None:
    """Sign out."""
    session.execute(delete(BrowserSession).where(BrowserSession.sha256 == digest(secret)))


def forget_ended_sessions(database: Database) -> None:
    """Those whose time is over, and codes that nobody took."""
    with database.write() as session:
        moment = now(session)
        session.execute(delete(BrowserSession).where(BrowserSession.expires_at <= moment))
        session.execute(delete(LoginCode).where(LoginCode.expires_at <= moment))


def _principal(key: ApiKey | None, moment: datetime) -> Principal | None:
    if key is None or key.revoked_at is not None:
        return None
    if key.expires_at is not None and key.expires_at <= moment:
        return None
    return Principal(key.id, key.tenant, frozenset(key.scopes))


def _row(
    session: Session,
    table: type[BrowserSession] | type[LoginCode],
    secret: str,
    key_id: str,
    seconds: int,
) -> BrowserSession | LoginCode:
    moment = now(session)
    return table(
        sha256=digest(secret), key_id=key_id, created_at=moment,
        expires_at=moment + timedelta(seconds=seconds),
    )  # fmt: skip
