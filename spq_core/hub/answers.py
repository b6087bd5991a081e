"""Count what the Hub answers, for whoever watches the service."""

from collections import Counter

import httpx2
from huggingface_hub import set_client_factory
from huggingface_hub.utils._http import default_client_factory

OPERATIONS = (
    ("/resolve/", "download"),
    ("/preupload/", "preupload"),
    ("/commit/", "commit"),
    ("/commits/", "history"),
    ("/repos/create", "create"),
    ("/info/lfs/", "upload"),
)


def operation(method: str, path: str) -> str:
    """What a request to the Hub is for; `info` or `upload` where its path does not say."""
    named = (name for part, name in OPERATIONS if part in path)
    return next(named, "upload" if method in {"PUT", "POST"} else "info")


def count_answers() -> Counter[tuple[str, int]]:
    """Count every answer the client gets in this process from now on, by operation and status."""
    answers: Counter[tuple[str, int]] = Counter()

    def note(response: httpx2.Response) -> None:
        request = response.request
        answers[operation(request.method, request.url.path), response.status_code] += 1

    def client() -> httpx2.Client:
        made = default_client_factory()
        made.event_hooks = {**made.event_hooks, "response": [note]}
        return made

    set_client_factory(client)
    return answers
