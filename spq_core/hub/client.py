"""The Hub client as we use it, and its errors in our words."""

from collections.abc import Iterator
from contextlib import contextmanager

import httpx2
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import (
    BadRequestError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from spq_core.hub.errors import HubError, HubUnavailableError

# With Xet an upload is several commits and has no plain-HTTP fallback; one job makes one commit.
constants.HF_HUB_DISABLE_XET = True

RETRYABLE_STATUS = frozenset({408, 429, 500, 502, 503, 504})


def hub_api(endpoint: str | None, token: str | None) -> HfApi:
    """A client for `endpoint` (None: the public Hub) that never falls back to a token on disk."""
    return HfApi(endpoint=endpoint, token=token or False)


@contextmanager
def translated_errors(repo_id: str) -> Iterator[None]:
    """Turn the client's errors into ours; messages name the repository and never a token.

    Raises:
        HubError: the request is wrong and will stay wrong.
        HubUnavailableError: the Hub did not answer, or asked to come back later.
    """
    try:
        yield
    except GatedRepoError:
        raise HubError(
            "gated_model",
            f"{repo_id} is gated: accept its terms on the Hub and give a token that may read it",
        ) from None
    except RepositoryNotFoundError:
        raise HubError(
            "model_not_found", f"{repo_id} does not exist, or the token may not see it"
        ) from None
    except RevisionNotFoundError:
        raise HubError("revision_not_found", f"{repo_id} has no such revision") from None
    except EntryNotFoundError as error:
        raise HubError("model_not_found", f"{repo_id} lacks a file: {_first_line(error)}") from None
    except BadRequestError as error:
        raise HubError("hub_rejected", f"{repo_id}: {_first_line(error)}") from None
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        if status in {401, 403}:
            raise HubError(
                "hub_permission_denied", f"the token may not do this to {repo_id}"
            ) from None
        if status in RETRYABLE_STATUS:
            raise HubUnavailableError(f"the Hub answered {status} for {repo_id}") from None
        raise HubError("hub_rejected", f"the Hub answered {status} for {repo_id}") from None
    except (httpx2.TransportError, ConnectionError, TimeoutError) as error:
        raise HubUnavailableError(f"the Hub cannot be reached: {type(error).__name__}") from None


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "")[:200]
