"""The files that make up a model folder, and a first look at them. Free of torch."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from spq_core.errors import UnsafeModelError
from spq_core.families.architectures import (
    check_config,
    check_stored_sizes,
    check_tokenizer_config,
)
from spq_core.families.unsafe_keys import refuse_unsafe_keys
from spq_core.weight_files import read_header, weight_files

SIDE_FILES = (
    "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "tokenizer.model",
    "chat_template.jinja", "LICENSE", "LICENSE.txt", "LICENSE.md",
)  # fmt: skip
"""Beside configuration and weights: fetched from a repository, carried into an artifact."""


SIDE_CHECKS: dict[str, Callable[[dict[str, Any]], None]] = {
    "tokenizer_config.json": check_tokenizer_config,
    "generation_config.json": partial(refuse_unsafe_keys, file="generation_config.json"),
}
"""Files that transformers reads settings from."""


def read_json_object(path: Path) -> dict[str, Any]:
    """Parse a JSON file that must hold an object.

    Raises:
        UnsafeModelError: it is missing or is none.
    """
    try:
        return parse_json_object(path.name, path.read_bytes())
    except FileNotFoundError:
        raise UnsafeModelError(
            "unsupported_architecture",
            f"{path.parent.name} has no {path.name}; it is not a transformers model",
        ) from None


def parse_json_object(name: str, text: bytes) -> dict[str, Any]:
    """Parse JSON that must hold an object.

    Raises:
        UnsafeModelError: it does not.
    """
    try:
        document = json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise UnsafeModelError("unsafe_config", f"{name} is not a JSON object")
    return document


def check_model_folder(folder: Path) -> None:
    """Judge a folder's configuration before transformers reads any of it.

    Raises:
        UnsafeModelError, UnsupportedModelError: it is not one we are willing to open.
        ArtifactError: the header of a weight file is malformed.
    """
    config = read_json_object(folder / "config.json")
    check_config(config)
    for name, check in SIDE_CHECKS.items():
        if (folder / name).is_file():
            check(read_json_object(folder / name))
    files = weight_files(folder)
    if files:
        headers = (read_header(folder / file) for file in files)
        stored = sum(one.n_elements for header in headers for one in header.values())
        check_stored_sizes(config, stored)
