"""Which Hub token an attempt uses."""

from contextlib import suppress

from app.db.attempts import Claim
from app.domain.errors import SecretUnreadableError
from app.secrets import make_sealer
from worker.errors import failed
from worker.settings import WorkerSettings


def hub_token(settings: WorkerSettings, claimed: Claim) -> str | None:
    """The job's own token, else the service's if its tenant may use that; None without either.

    Raises:
        ChildFailedError: the job has one that this worker cannot read.
    """
    if claimed.sealed_token is not None:
        sealer = make_sealer(settings.secret_keys)
        with suppress(SecretUnreadableError):
            if sealer is not None:
                return sealer.open(claimed.sealed_token)
        message = (
            "the worker cannot read the job's hub_token: its SPQ_SECRET_KEYS are not the API's"
        )
        raise failed("hub_token_unreadable", message)
    if claimed.request.get("hub_token"):
        # An older API or worker was in between, or the row is gone: nobody's token takes its place.
        message = "the job's hub_token is gone; submit the job again"
        raise failed("hub_token_unreadable", message)
    allowed = settings.token_tenants()
    if settings.hub_token is None or (allowed and claimed.tenant not in allowed):
        return None
    return settings.hub_token.get_secret_value()


def require_publishable(claimed: Claim, token: str | None) -> None:
    """Refuse, before any work, to make what could not be published.

    Raises:
        ChildFailedError: there is no token to publish with.
    """
    if claimed.request["output"] is not None and not token:
        raise failed(
            "hub_permission_denied",
            "publishing needs a hub_token in the request, or SPQ_HUB_TOKEN in the worker's environment; "
            "leave out output to keep the artifact in the service",
        )
