"""Options that say what of a repository or folder is the model. Free of torch."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import click

from spq_core.models.reading import Reading


def reading_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options for what of a repository or folder is the model; the command gets them as `reading`."""

    @click.option(
        "--subfolder",
        default="",
        help="Folder within MODEL that holds its config.json, or its GGUF file.",
    )
    @click.option("--file", help="A .gguf file in MODEL that is the model, instead of safetensors.")
    @click.option(
        "--allow-requantize",
        is_flag=True,
        help="Widen weights that are quantized already (FP8, MXFP4, GGUF) to 16 bits, and compress those.",
    )
    @wraps(command)
    def with_reading(
        *args: Any, subfolder: str, file: str | None, allow_requantize: bool, **others: Any
    ) -> Any:
        reading = Reading(subfolder.strip("/"), file, allow_requantize)
        return command(*args, reading=reading, **others)

    return with_reading
