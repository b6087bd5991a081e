"""The files that make up a model folder, and a first look at them. Free of torch."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spq_core.errors import UnsafeModelError
from spq_core.models.architectures import (
    ALL_MODEL_TYPES,
    check_config,
    check_stored_sizes,
)
from spq_core.models.other_repositories import what_instead_of_a_folder
from spq_core.models.quantized.forms import widened_config, widened_headers
from spq_core.models.reading import AS_IT_IS, Reading
from spq_core.models.unsafe_keys import refuse_unsafe_keys, without_leftovers
from spq_core.models.weight_files import INDEX_FILE, pointer_instead, read_header, weight_files

TEMPLATE_FOLDER = "additional_chat_templates"
"""Where transformers keeps chat templates beside the first one."""
TERMS_FOLDER = "LICENSES"
"""Where projects with several licences keep their texts (https://reuse.software)."""
SIDE_FOLDERS = (TEMPLATE_FOLDER, TERMS_FOLDER)
MAX_SETTINGS_BYTES = 64 << 20
SIDE_FILE = re.compile(
    r"generation_config\.json|special_tokens_map\.json|added_tokens\.json"
    r"|tokenizer(_config)?\.json|(tokenizer|spiece|spm|sentencepiece(\.bpe)?)\.model|tekken\.json"
    r"|vocab\.(json|txt)|merges\.txt|[\w.\-]{1,64}\.tiktoken"
    r"|chat_template\.(jinja|json)|" + TEMPLATE_FOLDER + r"/[\w.\-]{1,100}\.jinja"
    r"|(processor|(video_)?preprocessor)_config\.json"
)
"""Tokenizer, chat templates and generation settings, as transformers names them."""
TERMS_FILE = re.compile(
    r"[\w.\- ]{0,64}(licen[cs]e|notice|copying|copyright|policy|terms|attribution|acceptable[_\- ]?use)[\w.\- ]{0,64}",
    re.IGNORECASE | re.ASCII,
)
"""Terms that whoever passes a model on has to pass on, too."""
TERMS_TEXT = re.compile(r"[\w.\- ]{1,100}\.(txt|md)", re.ASCII)
TERMS_SUFFIXES = frozenset({"", ".txt", ".md", ".pdf", ".rst", ".html"})


def is_side_file(name: str) -> bool:
    """Whether a file is fetched and carried along beside configuration and weights."""
    return bool(SIDE_FILE.fullmatch(name)) or is_terms_file(name)


def is_terms_file(name: str) -> bool:
    """Whether a file holds terms that whoever passes a model on has to pass on, too."""
    folder, _, own = name.rpartition("/")
    if folder == TERMS_FOLDER and TERMS_TEXT.fullmatch(own):
        return True
    return bool(TERMS_FILE.fullmatch(name)) and _suffix(name) in TERMS_SUFFIXES


def _suffix(name: str) -> str:
    """The ending, if it is one: `LICENSE-2.0` has none."""
    suffix = Path(name).suffix.lower()
    return suffix if suffix[1:].isalpha() else ""


def side_files(folder: Path) -> list[str]:
    """Names of a folder's side files, those of its side folders with that folder's name."""
    return sorted(
        name for name in names_in(folder) if is_side_file(name) and (folder / name).is_file()
    )


def names_in(folder: Path) -> list[str]:
    """Names of all that lies in a model folder and its side folders, broken links too."""
    names = [path.name for path in folder.iterdir()]
    for side in SIDE_FOLDERS:
        if (folder / side).is_dir():
            names += [f"{side}/{path.name}" for path in (folder / side).iterdir()]
    return sorted(names)


SETTINGS_FILES = frozenset(
    {
        "config.json", "generation_config.json", "tokenizer_config.json", "processor_config.json",
        "preprocessor_config.json", "video_preprocessor_config.json", "special_tokens_map.json",
    }
)  # fmt: skip
"""Files that transformers reads settings from, in which a key can name code."""


def check_settings(
    name: str, document: Mapping[str, Any], reading: Reading = AS_IT_IS
) -> dict[str, Any]:
    """Judge one of `SETTINGS_FILES`; return it without leftovers (see `without_leftovers`).

    Those of config.json are left out only where transformers knows the model's type. What it says of quantized weights goes
    where they may be widened.

    Raises:
        UnsafeModelError, UnsupportedModelError: it is not one we are willing to open.
    """
    if name == "config.json":
        known = document.get("model_type") in ALL_MODEL_TYPES
        cleaned = without_leftovers(document).document if known else dict(document)
        if reading.allow_requantize:
            cleaned = widened_config(cleaned)
        check_config(cleaned)
        return cleaned
    cleaned = without_leftovers(document).document
    refuse_unsafe_keys(cleaned, name)
    return cleaned


def read_json_object(path: Path) -> dict[str, Any]:
    """Parse a JSON file that must hold an object.

    Raises:
        UnsafeModelError: it is missing or is none.
    """
    try:
        with path.open("rb") as handle:
            text = handle.read(MAX_SETTINGS_BYTES + 1)
        if len(text) > MAX_SETTINGS_BYTES:
            raise UnsafeModelError(
                "unsafe_config", f"{path.name} has more than {MAX_SETTINGS_BYTES >> 20} MiB"
            )
        return parse_json_object(path.name, text)
    except FileNotFoundError:
        reason = f"{path.parent.name} has no {path.name}; it is not a transformers model"
        if path.name == "config.json":
            reason = what_instead_of_a_folder(path.parent)
        raise UnsafeModelError("unsupported_architecture", reason) from None


def parse_json_object(name: str, text: bytes) -> dict[str, Any]:
    """Parse JSON that must hold an object.

    Raises:
        UnsafeModelError: it does not.
    """
    reason = "is not a JSON object"
    try:
        document = json.loads(text.decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        document = None
        reason = f"is not valid JSON: {error.msg} (line {error.lineno}, column {error.colno})"
    except UnicodeDecodeError:
        document = None
        reason = "is not UTF-8 text; save it as UTF-8"
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise UnsafeModelError("unsafe_config", f"{name} {pointer_instead(text) or reason}")
    return document


def check_model_folder(folder: Path, reading: Reading = AS_IT_IS) -> None:
    """Judge a folder's configuration before transformers reads any of it.

    Raises:
        UnsafeModelError, UnsupportedModelError: it is not one we are willing to open.
        ArtifactError: the header of a weight file is malformed.
    """
    if not (folder / "config.json").is_file():
        raise UnsafeModelError("unsupported_architecture", what_instead_of_a_folder(folder))
    document = read_json_object(folder / "config.json")
    config = check_settings("config.json", document, reading)
    for name in sorted(SETTINGS_FILES - {"config.json"}):
        if (folder / name).is_file():
            check_settings(name, read_json_object(folder / name))
    for name in side_files(folder):
        if name == "added_tokens.json":
            read_json_object(folder / name)
        elif name.endswith(".jinja"):
            _require_utf8(name, folder / name)
    files = weight_files(folder)
    if not files:
        raise without_weights(folder)
    tensors = {name: one for file in files for name, one in read_header(folder / file).items()}
    stored = sum(one.n_elements for one in widened_headers(document, tensors).values())
    check_stored_sizes(config, stored)


def _require_utf8(name: str, path: Path) -> None:
    try:
        path.read_text(encoding="utf-8")
    except UnicodeError:
        raise UnsafeModelError(
            "unsafe_config", f"{name} is not UTF-8 text; save it as UTF-8"
        ) from None


def without_weights(folder: Path) -> UnsafeModelError:
    """The error of a folder without weights that we open, which says what is there instead."""
    names = sorted(path.name for path in folder.iterdir())
    pickles = [name for name in names if name.endswith((".bin", ".pt", ".pth"))]
    others = [name for name in names if name.endswith(".safetensors")]
    detail = ""
    if pickles:
        detail = f"; {', '.join(pickles)} can run code when loaded and is never opened"
    elif others:
        detail = f"; {', '.join(others[:5])} is named by no {INDEX_FILE}, so transformers would not load it"
    return UnsafeModelError("unsafe_format", f"{folder.name} has no model.safetensors{detail}")
