"""Keys of a model's JSON files with which its author could have code run, or other repositories opened.

transformers and the libraries it calls have followed such keys with `trust_remote_code=False`:
`_attn_implementation_internal` named a repository of kernels (CVE-2026-4372), a `trust_remote_code` in a
config was handed on to a nested load (CVE-2026-5241), a `sparsity_config` named a Python file. So a file
that has one is refused before a library reads it.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from spq_core.errors import UnsafeModelError

CODE = frozenset(
    {
        "auto_map", "trust_remote_code", "sparsity_config", "custom_pipelines", "custom_generate",
        "code_revision",
    }
)  # fmt: skip
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
LONGEST = 80


def refuse_unsafe_keys(document: Mapping[str, Any], file: str) -> None:
    """Look at every key of a config, nested ones too.

    Raises:
        UnsafeModelError: one of them could have code run or other files opened.
    """
    for path, key, value in _items(document, ""):
        reason = next((why for why, holds in _dangers(path, key, value) if holds), None)
        if reason is not None:
            raise UnsafeModelError(
                "unsafe_config",
                f"{file}: {path[:LONGEST]} {reason}; we never do that. Remove it, or name another model.",
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
        key in PATHS and isinstance(value, str) and bool({"/", "\\"} & set(value)),
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
