"""The files that make up a model folder, and a first look at them. Free of torch."""

import json
from pathlib import Path
from typing import Any

from spq_core.errors import UnsafeModelError
from spq_core.families.architectures import (
    check_config,
    check_stored_sizes,
    check_tokenizer_config,
)
from spq_core.weight_files import read_header, weight_files

SIDE_FILES = (
    "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "tokenizer.model",
    "chat_template.jinja", "LICENSE", "LICENSE.txt", "LICENSE.md",
)  # fmt: skip
"""Beside configuration and weights: fetched from a repository, carried into an artifact."""


def read_json_object(path: Path) -> dict[str, Any]:
    """Parse a JSON file that must hold an object.

    Raises:
        UnsafeModelError: it is missing or is none.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UnsafeModelError(
            "unsupported_architecture",
            f"{path.parent.name} has no {path.name}; it is not a transformers model",
        ) from None
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise UnsafeModelError("unsafe_config", f"{path.name} is not a JSON object")
    return document


def check_model_folder(folder: Path) -> None:
    """Judge a folder's configuration before transformers reads any of it.

    Raises:
        UnsafeModelError, UnsupportedModelError: it is not one we are willing to open.
        ArtifactError: the header of a weight file is malformed.
    """
    config = read_json_object(folder / "config.json")
    check_config(config)
    tokenizer = folder / "tokenizer_config.json"
    if tokenizer.is_file():
        check_tokenizer_config(read_json_object(tokenizer))
    files = weight_files(folder)
    if files:
        headers = (read_header(folder / file) for file in files)
        stored = sum(one.n_elements for header in headers for one in header.values())
        check_stored_sizes(config, stored)
