"""The page of settings."""

import typing
from collections.abc import Iterator
from pathlib import Path
from types import NoneType
from typing import Any

from pydantic import SecretStr
from pydantic.fields import FieldInfo

from app.settings import ApiSettings, ServiceSettings
from worker.reference.schema import cell
from worker.settings import WorkerSettings

WORDS = {
    str: "text",
    int: "whole number",
    float: "number",
    bool: "true or false",
    Path: "path",
    SecretStr: "secret",
}


def page() -> Iterator[str]:
    """Its lines."""
    yield "# Settings"
    yield ""
    yield (
        "Environment variables, read once where a process starts; empty ones count as not set. `spq serve` sets those of API and "
        "worker by itself, and takes over what is set."
    )
    shared = set(ServiceSettings.model_fields)
    for title, settings, left_out in (
        ("API and workers", ServiceSettings, set[str]()),
        ("API", ApiSettings, shared),
        ("Workers", WorkerSettings, shared),
    ):
        yield ""
        yield f"## {title}"
        yield ""
        yield "| variable | value | default | |"
        yield "|---|---|---|---|"
        for name, field in settings.model_fields.items():
            if name not in left_out:
                yield _row(name, field)
    yield ""
    yield "## Command line and client"
    yield ""
    yield "| variable | |"
    yield "|---|---|"
    for name, text in COMMAND_LINE.items():
        yield f"| `{name}` | {text} |"


COMMAND_LINE = {
    "SPQ_URL": "the service that `spq jobs`, `spq sweeps`, `spq wait` … and `spq_client` talk to (http://127.0.0.1:8000)",
    "SPQ_API_KEY, SPQ_KEY_FILE": "the API key, or a file that holds it (`~/.spq/api-key`)",
    "SPQ_HUB_TOKEN, HF_TOKEN": "for gated models without a service",
    "SPQ_FIGURES_DIR": "figures of sources and of plain INT8 that later runs reuse (`~/.cache/spq/figures`)",
    "SPQ_MEMORY_BYTES": "memory that a run may count on (what the machine and its container allow)",
    "OTEL_EXPORTER_OTLP_ENDPOINT": "API and workers: where traces go",
}


def _row(name: str, field: FieldInfo) -> str:
    default = field.default
    shown = f"`{default}`" if default not in {None, ""} and not field.is_required() else ""
    told = "required" if field.is_required() else shown
    return f"| `SPQ_{name.upper()}` | {_word(field.annotation)} | {told} | {cell(field.description or '')} |"


def _word(annotation: Any) -> str:
    """What a value is, without its limits and without None."""
    parts = typing.get_args(annotation)
    if typing.get_origin(annotation) is typing.Annotated:
        return _word(parts[0])
    if parts:
        return " or ".join(_word(part) for part in parts if part is not NoneType)
    return WORDS[annotation]
