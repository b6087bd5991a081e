"""All generated files of docs/, by name."""

import json
from collections.abc import Iterable

from app.openapi import document
from worker.reference import api, commands, models, recipes, settings, sweeps

NOTE = "<!-- Written by `make docs` from the code: change it there. -->"


def pages() -> dict[str, str]:
    """The files' texts, by their paths below docs/."""
    found = document()
    written = {
        "models": models.page(), "recipes": recipes.page(), "sweeps": sweeps.page(), "api": api.page(found), "settings": settings.page(), "commands": commands.page(),
    }  # fmt: skip
    return {f"reference/{name}.md": _text(lines) for name, lines in written.items()} | {
        "openapi.json": json.dumps(found, indent=1, sort_keys=True) + "\n"
    }


def _text(lines: Iterable[str]) -> str:
    return "\n".join((NOTE, "", *lines)) + "\n"
