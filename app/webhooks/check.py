"""What a job's webhook must be, found out when the job is submitted."""

from collections.abc import Sequence

from sqlalchemy.orm import Session

from app.db.webhooks import secret_of
from app.domain.errors import WebhooksDisabledError
from app.secrets import Sealer
from app.webhooks.signing import new_secret
from app.webhooks.targets import Network, parse_target


def check_webhook(
    sealer: Sealer | None, trusted: Sequence[Network], session: Session, tenant: str, url: str
) -> None:
    """Make sure that a message to the URL could be signed and sent.

    Raises:
        WebhooksDisabledError: there is no key to keep the tenant's secret with.
        UnsafeWebhookError: the URL is not one to call.
    """
    if sealer is None:
        raise WebhooksDisabledError
    parse_target(url, trusted)
    secret_of(session, tenant, sealer.seal(new_secret()))
