"""Requests that are sent again with the same Idempotency-Key."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from app.db.idempotency import Idempotency, known_answer
from app.db.keys import Principal
from app.db.quotas import RateState, count_request
from app.db.session import Database
from app.jobs.requests import Submission


def asked_document(tenant: str, body: Submission) -> dict[str, Any]:
    """What a submission asks for. Its token is masked there; another token is another request."""
    document: dict[str, Any] = body.model_dump(mode="json", exclude_unset=True)
    if body.hub_token is not None:
        secret = body.hub_token.get_secret_value()
        document["hub_token"] = hashlib.sha256(f"{tenant} {secret}".encode()).hexdigest()
    return document


@dataclass(frozen=True, slots=True)
class Accepted:
    """The answer to a submission."""

    document: dict[str, Any]
    """As its view has it."""
    rate: RateState
    replayed: bool
    """It was given before, to the same request."""


def replayed(
    database: Database, caller: Principal, asked: Idempotency | None, per_minute: int
) -> Accepted | None:
    """The answer to an earlier request, though what it named may be gone by now.

    Raises:
        RateLimitedError, IdempotencyKeyReusedError, RequestInProgressError: see `count_request`, `recall`.
    """
    if asked is None:
        return None
    with database.read() as session:
        before = known_answer(session, asked)
    if before is None:
        return None
    return Accepted(before, count_request(database, caller.key_id, per_minute), replayed=True)


def idempotency(tenant: str, key: str | None, request: dict[str, Any]) -> Idempotency | None:
    """What makes two requests the same one: their tenant, their key, and what they ask for."""
    if key is None:
        return None
    canonical = json.dumps(request, sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    return Idempotency(tenant=tenant, key=key, request_sha256=digest)
