"""Options that say what of a repository or folder is the model. Free of torch."""

import re
from collections.abc import Callable
from functools import wraps
from typing import Any

import click

from spq_core.models.reading import FILE, FILE_WORDS, SUBFOLDER, SUBFOLDER_WORDS, Reading


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
        for value, pattern, words, option in (
            (subfolder, SUBFOLDER, SUBFOLDER_WORDS, "--subfolder"), (file, FILE, FILE_WORDS, "--file"),
        ):  # fmt: skip
            if value and not re.fullmatch(pattern, value):
                raise click.UsageError(f"{option} {value[:200]!r} {words}")
        reading = Reading(subfolder, file or None, allow_requantize)
        return command(*args, reading=reading, **others)

    return with_reading
