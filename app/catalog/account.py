"""Who asks, what they may, and what they use of it."""

from datetime import datetime

from fastapi import APIRouter, Request

from app.db.models import ApiKey
from app.db.quotas import use_of
from app.http.auth import Reader, database_of
from app.http.view import View

router = APIRouter(tags=["catalog"])


class KeyView(View):
    """The API key of a request; the key itself is shown once, when it is made."""

    id: str
    name: str
    expires_at: datetime | None


class LimitView(View):
    """One limit of a tenant."""

    limit: int | None
    """None is unlimited."""
    used: float


class Account(View):
    """Whom a request speaks for."""

    object: str = "account"
    tenant: str
    scopes: list[str]
    key: KeyView
    limits: dict[str, LimitView]
    """`max_active_jobs`, `max_jobs_per_day`, `max_minutes_per_day` (of the last 24 hours), `max_stored_bytes`."""


@router.get("/me", response_model=Account)
def whoami(request: Request, caller: Reader) -> Account:
    """The tenant and the key of this request, its scopes, and the tenant's limits with what is used of them."""
    with database_of(request).read() as session:
        key = session.get_one(ApiKey, caller.key_id)
        return Account(
            tenant=caller.tenant,
            scopes=sorted(caller.scopes),
            key=KeyView(id=key.id, name=key.name, expires_at=key.expires_at),
            limits={
                name: LimitView.model_validate(one)
                for name, one in use_of(session, caller.tenant).items()
            },
        )
