"""What a shell completes: recipes, and jobs of the service that answers."""

from pathlib import Path
from typing import Any

import click

SECONDS = 2.0


def complete_recipes(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[Any]:
    """Recipes of the catalog."""
    from click.shell_completion import CompletionItem  # noqa: PLC0415

    del context, parameter
    folder = Path(__file__).resolve().parents[2] / "spq_core" / "recipe" / "catalog"
    names = sorted(file.stem for file in folder.glob("*.yaml"))
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


def complete_jobs(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[Any]:
    """The newest jobs by the ends of their ids, with what they are; nothing where the service does not answer."""
    from click.shell_completion import CompletionItem  # noqa: PLC0415

    from app.client.connection import client_of  # noqa: PLC0415
    from app.client.http import ApiError  # noqa: PLC0415

    del parameter
    where = context.obj or (
        context.parent
        and context.parent.params
        and (context.parent.params["url"], context.parent.params["key_file"])
    )
    try:
        client = client_of(*where) if where else client_of()
        rows = client.call("GET", "/jobs", view="row", limit=30)["data"]
    except ApiError:
        return []
    items = [(row["id"] if incomplete.startswith("job_") else row["id"][-8:], row) for row in rows]
    return [
        CompletionItem(name, help=f"{row['status']} {row['model']} {row['recipe']}")
        for name, row in items
        if name.startswith(incomplete)
    ]
