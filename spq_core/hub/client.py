"""The Hub client as we use it, and its errors in our words."""

from collections.abc import Iterator
from contextlib import contextmanager

import httpx2
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from spq_core.errors import SpqError
from spq_core.hub.errors import HubError, HubUnavailableError

# With Xet an upload is several commits and has no plain-HTTP fallback; one job makes one commit.
constants.HF_HUB_DISABLE_XET = True

PROBE_SECONDS = 5.0
RETRYABLE_STATUS = frozenset({408, 429, 500, 502, 503, 504})
DENIED_STATUS = frozenset({401, 403})
SPECIFIC = (
    (
        GatedRepoError,
        "gated_model",
        "is gated: accept its terms on the Hub and give a token that may read it",
    ),
    (RepositoryNotFoundError, "model_not_found", "does not exist, or the token may not see it"),
    (RevisionNotFoundError, "revision_not_found", "has no such revision"),
    (EntryNotFoundError, "model_not_found", "lacks a file it should have"),
)
"""The client's error classes, the more specific ones first, in our words."""


def hub_api(endpoint: str | None, token: str | None) -> HfApi:
    """A client for `endpoint` (None: the public Hub) that never falls back to a token on disk."""
    return HfApi(endpoint=endpoint, token=token or False)


def require_reachable(api: HfApi) -> None:
    """Find out quickly that the Hub is away; the client itself retries a download for half a minute.

    Raises:
        HubUnavailableError: nothing answers at the endpoint.
    """
    try:
        httpx2.head(api.endpoint, timeout=PROBE_SECONDS)
    except httpx2.TransportError as error:
        raise HubUnavailableError(
            f"the Hub cannot be reached at {api.endpoint} ({type(error).__name__}); name a local folder, or another "
            "Hub (HF_ENDPOINT, for a service SPQ_HUB_ENDPOINT)"
        ) from None


@contextmanager
def translated_errors(repo_id: str) -> Iterator[None]:
    """Turn the client's errors into ours; messages name the repository and never a token.

    Raises:
        HubError: the request is wrong and will stay wrong.
        HubUnavailableError: the Hub did not answer, or asked to come back later.
    """
    try:
        yield
    except HfHubHTTPError as error:
        raise _translated(repo_id, error) from None
    except RuntimeError as error:
        # The client wraps what happens to one file of an upload.
        if isinstance(error.__cause__, HfHubHTTPError):
            raise _translated(repo_id, error.__cause__) from None
        if isinstance(error.__cause__, httpx2.TransportError):
            raise HubUnavailableError(f"an upload to {repo_id} broke off") from None
        raise
    except (
        LocalEntryNotFoundError,  # the client's word for a download that found no server
        httpx2.TransportError,
        ConnectionError,
        TimeoutError,
    ) as error:
        raise HubUnavailableError(f"the Hub cannot be reached: {type(error).__name__}") from None


def _translated(repo_id: str, error: HfHubHTTPError) -> SpqError:
    for kind, code, text in SPECIFIC:
        if isinstance(error, kind):
            return HubError(code, f"{repo_id} {text}")
    status = error.response.status_code
    if status in RETRYABLE_STATUS:
        return HubUnavailableError(f"the Hub answered {status} for {repo_id}")
    if status in DENIED_STATUS:
        return HubError("hub_permission_denied", f"the token may not do this to {repo_id}")
    return HubError("hub_rejected", f"the Hub refused {repo_id} ({status}): {_first_line(error)}")


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "")[:200]
