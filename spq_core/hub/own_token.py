"""The Hub token of whoever types a command: HF_TOKEN, a stored login, SPQ_HUB_TOKEN, in that order.

For command lines only. A service uses the token it is given, and never one of the machine.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from huggingface_hub import HfApi, get_token

from spq_core.hub.client import hub_api
from spq_core.hub.errors import HubError

FROM_ENVIRONMENT = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
OURS = "SPQ_HUB_TOKEN"
ABOUT_TOKENS = frozenset({"gated_model", "model_not_found", "hub_permission_denied"})


class OwnToken(NamedTuple):
    """A token, and where it is from."""

    token: str | None
    origin: str


def own_token() -> OwnToken:
    """The first token there is."""
    for name in FROM_ENVIRONMENT:
        if os.environ.get(name, "").strip():
            return OwnToken(os.environ[name].strip(), name)
    stored = get_token()
    if stored:
        return OwnToken(stored, "the stored login")
    ours = os.environ.get(OURS, "").strip()
    if ours:
        return OwnToken(ours, OURS)
    return OwnToken(None, "")


@contextmanager
def own_hub() -> Iterator[HfApi]:
    """A client with that token; a refusal names where the token was from, and never the token.

    Raises:
        HubError: the Hub refused.
    """
    found = own_token()
    try:
        yield hub_api(None, found.token)
    except HubError as error:
        if error.code not in ABOUT_TOKENS:
            raise
        used = (
            f"the token of {found.origin} was used"
            if found.token
            else f"no token was found: set HF_TOKEN or {OURS}, or log in with `hf auth login`"
        )
        raise HubError(error.code, f"{error} ({used})") from None
