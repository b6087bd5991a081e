"""Answers to requests that carried an Idempotency-Key (draft-ietf-httpapi-idempotency-key-header-07)."""

import hashlib
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from app.db.models import IdempotentAnswer
from app.db.session import Database, is_sqlite, now
from app.domain.errors import IdempotencyKeyReusedError, RequestInProgressError

KEPT = timedelta(hours=48)


@dataclass(frozen=True, slots=True, kw_only=True)
class Idempotency:
    """One tenant's key, and the request it came with."""

    tenant: str
    key: str
    request_sha256: str


def recall(session: Session, asked: Idempotency) -> dict[str, Any] | None:
    """The answer this request got before; None for a new one, which nobody else can now begin.

    Raises:
        RequestInProgressError: the first request with this key has not been answered yet.
        IdempotencyKeyReusedError: the key came with another request.
    """
    if not _alone(session, asked):
        raise RequestInProgressError
    return known_answer(session, asked)


def known_answer(session: Session, asked: Idempotency) -> dict[str, Any] | None:
    """What an earlier request with the key was answered, once that is written; None if there is nothing.

    Raises:
        IdempotencyKeyReusedError: the key came with another request.
    """
    found = session.scalar(
        select(IdempotentAnswer).where(
            IdempotentAnswer.tenant == asked.tenant,
            IdempotentAnswer.key == asked.key,
            IdempotentAnswer.created_at > now(session) - KEPT,
        )
    )
    if found is None:
        return None
    if found.request_sha256 != asked.request_sha256:
        raise IdempotencyKeyReusedError(asked.key)
    return found.answer


def remember(session: Session, asked: Idempotency, answer: dict[str, Any]) -> None:
    """Keep the answer, in the transaction of what it answers for."""
    session.merge(
        IdempotentAnswer(
            tenant=asked.tenant,
            key=asked.key,
            request_sha256=asked.request_sha256,
            answer=answer,
            created_at=now(session),
        )
    )


def forget_old_answers(database: Database) -> None:
    """Keys are free again after `KEPT`."""
    with database.write() as session:
        session.execute(
            delete(IdempotentAnswer).where(IdempotentAnswer.created_at < now(session) - KEPT)
        )


def _alone(session: Session, asked: Idempotency) -> bool:
    """Hold the key until the transaction ends. SQLite has one writer, who holds all of them."""
    if is_sqlite(session):
        return True
    text = f"{asked.tenant}\n{asked.key}".encode()
    number = int.from_bytes(hashlib.sha256(text).digest()[:8], "big", signed=True)
    return bool(session.scalar(select(func.pg_try_advisory_xact_lock(number))))
