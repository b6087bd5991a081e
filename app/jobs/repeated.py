"""Requests that are sent again with the same Idempotency-Key."""

import hashlib
import json
from typing import Any

from app.db.idempotency import Idempotency
from app.jobs.schemas import Submission


def asked_document(tenant: str, body: Submission) -> dict[str, Any]:
    """What a submission asks for. Its token is masked there; another token is another request."""
    document: dict[str, Any] = body.model_dump(mode="json", exclude_unset=True)
    if body.hub_token is not None:
        secret = body.hub_token.get_secret_value()
        document["hub_token"] = hashlib.sha256(f"{tenant} {secret}".encode()).hexdigest()
    return document


def idempotency(tenant: str, key: str | None, request: dict[str, Any]) -> Idempotency | None:
    """What makes two requests the same one: their tenant, their key, and what they ask for."""
    if key is None:
        return None
    canonical = json.dumps(request, sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    return Idempotency(tenant=tenant, key=key, request_sha256=digest)
