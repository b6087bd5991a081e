"""Keys of a model's JSON files with which its author could have code run, or other repositories opened.

transformers and the libraries it calls have followed such keys with `trust_remote_code=False`:
`_attn_implementation_internal` named a repository of kernels (CVE-2026-4372), a `trust_remote_code` in a
config was handed on to a nested load (CVE-2026-5241), a `sparsity_config` named a Python file. So a file
that has one is refused before a library reads it.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from spq_core.errors import UnsafeModelError

FORMER_CODE = frozenset(
    {"auto_map", "trust_remote_code", "custom_pipelines", "custom_generate", "code_revision"}
)
"""Code for a type that transformers did not know once. Without them its own is used."""
CODE = FORMER_CODE | {"sparsity_config"}
"""Refused wherever they have a value that means anything."""
ATTENTION = frozenset({"attn_implementation", "_attn_implementation"})
ATTENTIONS = frozenset(
    {"eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"}
)
HARMLESS = ATTENTION | {
    "_name_or_path", "_model_name_or_path", "_commit_hash", "_diffusers_version", "__type",
}  # fmt: skip
"""Internal ones that only inform, or are looked at apart. Of the others, a plain word may stand; what could
be a repository, a file or a module may not."""
NESTED_MODEL = frozenset({"model_type", "_name_or_path", "architectures"})
PATHS = frozenset({"tokenizer_file", "vocab_file", "merges_file", "spm_file"})
FORMER_PATHS = PATHS | {"special_tokens_map_file", "added_tokens_file", "name_or_path"}
"""Where files were on another machine."""
LONGEST = 80
TOWER = re.compile(r"\w+_config")
WORD = re.compile(r"[\w\-]{1,64}", re.ASCII)


class Cleaned(NamedTuple):
    """A document without what is not for us."""

    document: dict[str, Any]
    left_out: tuple[str, ...]
    """Paths of the keys that were left out."""


def without_leftovers(document: Mapping[str, Any]) -> Cleaned:
    """A copy of a model's JSON file without code for its type, and without paths of other machines.

    Only for models of a type that transformers knows: it needs none of them.
    """
    left_out: list[str] = []
    cleaned: dict[str, Any] = _kept(document, "", left_out)
    return Cleaned(cleaned, tuple(left_out))


def _kept(value: Any, path: str, left_out: list[str]) -> Any:
    """A value without leftovers, nested ones too; their paths are added to `left_out`."""
    if isinstance(value, Mapping):
        kept = {}
        for key, one in value.items():
            inner = f"{path}.{key}" if path else str(key)
            if _is_leftover(str(key), one):
                left_out.append(inner)
            else:
                kept[key] = _kept(one, inner, left_out)
        return kept
    if isinstance(value, list):
        return [_kept(one, f"{path}[]", left_out) for one in value]
    return value


def _is_leftover(key: str, value: Any) -> bool:
    if key in FORMER_CODE:
        return bool(value)
    return key in FORMER_PATHS and isinstance(value, str) and _is_path(value)


def _is_path(value: str) -> bool:
    return bool({"/", "\\"} & set(value))


def refuse_unsafe_keys(document: Mapping[str, Any], file: str, *, towers: bool = False) -> None:
    """Look at every key of a config, nested ones too.

    Args:
        towers: the model has several, each with a type of its own that is known by a word.

    Raises:
        UnsafeModelError: one of them could have code run or other files opened.
    """
    for path, key, value in _items(document, ""):
        if towers and _is_tower(path, key, value):
            continue
        reason = next((why for why, holds in _dangers(path, key, value) if holds), None)
        if reason is not None:
            raise UnsafeModelError(
                "unsafe_config",
                f"{file}: {path[:LONGEST]} {reason}; we never do that. Remove it, or name another model.",
            )


def _is_tower(path: str, key: str, value: Any) -> bool:
    """Whether this is the type of a tower right within the document, and names nothing but a type."""
    parent, _, _ = path.rpartition(".")
    words = [value] if isinstance(value, str) else value
    return (
        key in {"model_type", "architectures"}
        and bool(TOWER.fullmatch(parent))
        and isinstance(words, list)
        and all(isinstance(word, str) and WORD.fullmatch(word) for word in words)
    )


def _dangers(path: str, key: str, value: Any) -> Iterator[tuple[str, bool]]:
    """What could be wrong with a key, and whether it is."""
    meant = isinstance(value, str | list | dict) and bool(value)
    internal = key.startswith(("_", "kernel", "use_kernel", "hub_kernel"))
    elsewhere = not isinstance(value, str) or bool({"/", "\\", ".", ":"} & set(value))
    yield "loads code from a repository", key in CODE and bool(value)
    yield "names a kernel to load", key in ATTENTION and meant and str(value) not in ATTENTIONS
    yield (
        "is a model within the model, which may name another repository",
        path != key and key in NESTED_MODEL and meant,
    )
    yield (
        "is an internal setting with which libraries load code",
        internal and key not in HARMLESS and meant and elsewhere,
    )
    yield (
        "points outside the model's folder",
        key in PATHS and isinstance(value, str) and _is_path(value),
    )


def _items(document: Any, path: str) -> Iterator[tuple[str, str, Any]]:
    """Every key of nested objects, with its path; JSON's depth was limited when it was parsed."""
    if isinstance(document, Mapping):
        for key, value in document.items():
            inner = f"{path}.{key}" if path else str(key)
            yield inner, str(key), value
            yield from _items(value, inner)
    elif isinstance(document, list):
        for value in document:
            yield from _items(value, f"{path}[]")
