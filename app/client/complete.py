"""What a shell completes of what a service has: nothing where none answers."""

from pathlib import Path
from typing import Any

import click

NEWEST_JOBS = 30


def complete_jobs(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[Any]:
    """The newest jobs by the ends of their ids, with what they are, and `@last`."""
    del parameter
    rows = _asked(context, "/jobs", view="row", limit=NEWEST_JOBS)
    told = {row["id"]: f"{row['status']} {row['model']} {row['recipe']}" for row in rows}
    return _offered(told, "job_", incomplete)


def complete_sweeps(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[Any]:
    """The newest sweeps, as jobs."""
    del parameter
    rows = _asked(context, "/sweeps", limit=NEWEST_JOBS)
    told = {row["id"]: f"{row['status']} {row['name']} {row['model']}" for row in rows}
    return _offered(told, "swp_", incomplete)


def _offered(told: dict[str, str], prefix: str, incomplete: str) -> list[Any]:
    from click.shell_completion import CompletionItem  # noqa: PLC0415

    from app.client.ids import NEWEST  # noqa: PLC0415

    whole = incomplete.startswith(prefix)
    names = {name if whole else name[-8:]: words for name, words in told.items()}
    if names:
        names[NEWEST] = "the newest"
    return [
        CompletionItem(name, help=words)
        for name, words in names.items()
        if name.startswith(incomplete)
    ]


def _asked(context: click.Context, path: str, **query: Any) -> list[dict[str, Any]]:
    from app.client.connection import client_of  # noqa: PLC0415
    from app.client.http import ApiError  # noqa: PLC0415

    try:
        return list(client_of(*_where(context)).call("GET", path, **query)["data"])
    except ApiError:
        return []


def _where(context: click.Context) -> tuple[str, Path]:
    """Address and key file as the command or its group has them; defaults are not filled in while a shell completes."""
    from app.client.connection import KEY_FILE, URL  # noqa: PLC0415

    at: click.Context | None = context
    while at is not None:
        if "url" in at.params:
            return at.params["url"] or URL, Path(at.params["key_file"] or KEY_FILE)
        at = at.parent
    return URL, KEY_FILE
