"""Routes for webhooks: the signing secret, and what was delivered."""

from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Request, status
from pydantic import ConfigDict

from app.db import webhooks
from app.db.models import WebhookSecret
from app.domain.errors import DeliveryNotFoundError, WebhooksDisabledError
from app.http.auth import Reader, Writer, database_of
from app.http.problems import documented
from app.http.view import View
from app.secrets import Sealer
from app.webhooks.signing import new_secret

router = APIRouter(tags=["webhooks"])


class SecretView(View):
    """What messages are signed with (Standard Webhooks)."""

    object: Literal["webhook_secret"] = "webhook_secret"
    secret: str
    created_at: datetime


class DeliveryView(View):
    """A message to a webhook."""

    model_config = ConfigDict(from_attributes=True)

    id: str
    object: Literal["webhook_delivery"] = "webhook_delivery"
    job_id: str
    url: str
    type: str
    payload: dict[str, Any]
    tries: int
    created_at: datetime
    next_try_at: datetime | None
    """Null when it was delivered, or given up: `POST …/resend` tries again."""
    delivered_at: datetime | None
    last_status: int | None
    last_error: str | None


class DeliveryPage(View):
    """A page of deliveries, newest first."""

    object: Literal["list"] = "list"
    data: list[DeliveryView]
    has_more: bool
    next_cursor: str | None


@router.get("/webhooks/secret", responses=documented(WebhooksDisabledError))
def get_secret(request: Request, caller: Writer) -> SecretView:
    """The secret that this tenant's messages are signed with."""
    sealer = _sealer(request)
    with database_of(request).write() as session:
        row = webhooks.secret_of(session, caller.tenant, sealer.seal(new_secret()))
    return _view(row, sealer)


@router.post("/webhooks/secret/rotate", responses=documented(WebhooksDisabledError))
def rotate_secret(request: Request, caller: Writer) -> SecretView:
    """Change the secret. For a day messages are signed with the old one too."""
    sealer = _sealer(request)
    with database_of(request).write() as session:
        row = webhooks.rotate_secret(session, caller.tenant, sealer.seal(new_secret()))
    return _view(row, sealer)


@router.get("/webhook_deliveries", responses=documented(DeliveryNotFoundError))
def list_deliveries(
    request: Request,
    caller: Reader,
    job_id: Annotated[
        str | None, Query(max_length=64, description="Only messages about this job.")
    ] = None,
    after: Annotated[
        str | None, Query(max_length=64, description="Where the page before ended.")
    ] = None,
    limit: Annotated[int, Query(ge=1, le=100, description="Entries of a page at most.")] = 20,
) -> DeliveryPage:
    """Messages to this tenant's webhooks, newest first."""
    with database_of(request).read() as session:
        rows = webhooks.page(session, caller.tenant, job_id=job_id, after=after, limit=limit + 1)
    shown = [DeliveryView.model_validate(row) for row in rows[:limit]]
    more = len(rows) > limit
    return DeliveryPage(data=shown, has_more=more, next_cursor=shown[-1].id if more else None)


@router.post(
    "/webhook_deliveries/{delivery_id}/resend",
    status_code=status.HTTP_202_ACCEPTED,
    responses=documented(DeliveryNotFoundError),
)
def resend_delivery(
    delivery_id: Annotated[str, Path(description="A message's `id`.")],
    request: Request,
    caller: Writer,
) -> DeliveryView:
    """Deliver a message again, with the same id."""
    with database_of(request).write() as session:
        return DeliveryView.model_validate(webhooks.resend(session, caller.tenant, delivery_id))


def _sealer(request: Request) -> Sealer:
    sealer: Sealer | None = request.app.state.sealer
    if sealer is None:
        raise WebhooksDisabledError
    return sealer


def _view(row: WebhookSecret, sealer: Sealer) -> SecretView:
    return SecretView(secret=sealer.open(row.sealed), created_at=row.created_at)
