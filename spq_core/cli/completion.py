"""What a shell completes of what is shipped: names, from the folders, as reading documents takes long."""

from pathlib import Path
from typing import Any

import click

SHIPPED = Path(__file__).resolve().parents[1]


def complete_recipes(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[Any]:
    """Recipes of the catalog, and files."""
    del context, parameter
    return _offered("recipe", incomplete)


def complete_shipped_sweeps(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[Any]:
    """Sweeps that are shipped, and files."""
    del context, parameter
    return _offered("sweep", incomplete)


def _offered(kind: str, incomplete: str) -> list[Any]:
    from click.shell_completion import CompletionItem  # noqa: PLC0415

    names = sorted(file.stem for file in (SHIPPED / kind / "catalog").glob("*.yaml"))
    fitting = [CompletionItem(name) for name in names if name.startswith(incomplete)]
    return fitting or [CompletionItem(incomplete, type="file")]
