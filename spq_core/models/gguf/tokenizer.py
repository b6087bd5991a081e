"""A tokenizer as a GGUF file has it: tokens, their kinds, merges or scores, and which of llama.cpp's ways of cutting text is its.

llama.cpp has no expressions of a file's own: it knows some ways of cutting text by name. A tokenizer whose way is none of them is
refused; whoever loads the file would get other tokens than the model was trained with.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from transformers import PreTrainedTokenizerBase

from spq_core.errors import TokenizerError
from spq_core.models.gguf.cutting import cutting_of
from spq_core.models.tokenizer import PROBE, opening_tokens

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
BYTE_TOKEN_LENGTH = 6
"""Of <0x0A>."""
ADDED_SCORE, LEAST_SCORE = -1000.0, -10000.0
SPACE = "\u2581"
NO_MERGE = ["<nothing> <nothing>"]
"""For tokenizers that merge nothing: no text has these for neighbouring characters, and an empty list cannot be written."""
SPECIAL = ("bos", "eos", "unk", "sep", "pad", "mask")
NAMES = {"unk": "unknown", "sep": "seperator", "pad": "padding"}
"""How ggml spells them in keys."""


def tokenizer_keys(
    tokenizer: PreTrainedTokenizerBase, rows: int, ends: tuple[int, ...] = ()
) -> dict[str, Any]:
    """Everything that `tokenizer.*` says.

    Args:
        rows: of the embedding.
        ends: tokens that end a text, by the model's settings for generation.

    Raises:
        TokenizerError: llama.cpp would read text otherwise.
    """
    document = _document(tokenizer)
    model = document["model"]
    if model.get("type") != "BPE":
        raise _unlike(f"it is of type {model.get('type')}")
    unknown = getattr(tokenizer, "unk_token", None)
    tokens, kinds = _tokens(document, rows, unknown)
    keys: dict[str, Any] = {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": kinds}
    if model.get("byte_fallback"):
        keys |= _by_scores(document, tokens, kinds)
    else:
        keys |= {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": cutting_of(document),
            "tokenizer.ggml.merges": [_merge(one) for one in model["merges"]] or NO_MERGE,
        }
    return keys | dict(_special(tokenizer, ends)) | dict(_templates(tokenizer))


def _document(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What tokenizer.json says, whatever files it was made of."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise _unlike("transformers has no fast form of it")
    found: dict[str, Any] = json.loads(backend.to_str())
    return found


def _unlike(reason: str) -> TokenizerError:
    return TokenizerError(
        f"profile gguf: llama.cpp would not read text as this tokenizer does: {reason}; use profile compact"
    )


def _merge(one: Any) -> str:
    return one if isinstance(one, str) else " ".join(one)


def _tokens(
    document: Mapping[str, Any], rows: int, unknown: str | None
) -> tuple[list[str], list[int]]:
    """Text and kind of every row of the embedding.

    Args:
        unknown: the token for what cannot be written.
    """
    tokens = [f"[PAD{at}]" for at in range(rows)]
    kinds = [UNUSED] * rows
    model = document["model"]
    for text, at in model["vocab"].items():
        if at < rows:
            tokens[at], kinds[at] = text, _kind(text, model, unknown)
    for one in document.get("added_tokens") or ():
        at, text = int(one["id"]), one["content"]
        if at < rows:
            kind = _kind(text, model, unknown)
            tokens[at] = text
            kinds[at] = kind if kind != NORMAL else CONTROL if one["special"] else USER_DEFINED
    return tokens, kinds


def _kind(text: str, model: Mapping[str, Any], unknown: str | None) -> int:
    if model.get("byte_fallback"):
        if text == unknown:
            return UNKNOWN
        if len(text) == BYTE_TOKEN_LENGTH and text.startswith("<0x") and text.endswith(">"):
            return BYTE
    return NORMAL


def _by_scores(document: Mapping[str, Any], tokens: list[str], kinds: list[int]) -> dict[str, Any]:
    """SentencePiece's way: what is merged first has the highest score."""
    if not _replaces_spaces(document):
        raise _unlike("it falls back to bytes, and does not write spaces as U+2581")
    first: dict[str, int] = {}
    for rank, one in enumerate(document["model"]["merges"]):
        left, right = one.split(" ") if isinstance(one, str) else one
        first.setdefault(left + right, rank)
    scores = [
        ADDED_SCORE if kind in {CONTROL, USER_DEFINED} else -float(first[text]) if text in first
        else LEAST_SCORE if kind == UNUSED else 0.0 if kind in {BYTE, UNKNOWN} else -float(len(first))
        for text, kind in zip(tokens, kinds, strict=True)
    ]  # fmt: skip
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.add_space_prefix": _puts_space_in_front(document),
    }


def _steps(part: Mapping[str, Any] | None, inner: str) -> Iterator[Mapping[str, Any]]:
    """Those of a sequence, one by one."""
    if part is None:
        return
    if part.get("type") == "Sequence":
        for one in part[inner]:
            yield from _steps(one, inner)
    else:
        yield part


def _replaces_spaces(document: Mapping[str, Any]) -> bool:
    normalized = any(
        step["type"] == "Replace" and step.get("content") == SPACE
        for step in _steps(document.get("normalizer"), "normalizers")
    )
    cut = any(
        step["type"] == "Metaspace" and step.get("replacement") == SPACE
        for step in _steps(document.get("pre_tokenizer"), "pretokenizers")
    )
    return normalized or cut


def _puts_space_in_front(document: Mapping[str, Any]) -> bool:
    prepended = any(
        step["type"] == "Prepend" for step in _steps(document.get("normalizer"), "normalizers")
    )
    return prepended or any(
        step["type"] == "Metaspace" and step.get("prepend_scheme", "always") != "never"
        for step in _steps(document.get("pre_tokenizer"), "pretokenizers")
    )


def _special(
    tokenizer: PreTrainedTokenizerBase, ends: tuple[int, ...]
) -> Iterator[tuple[str, Any]]:
    for name in SPECIAL:
        found = getattr(tokenizer, f"{name}_token_id", None)
        if isinstance(found, int):
            yield f"tokenizer.ggml.{NAMES.get(name, name)}_token_id", found
    others = [one for one in ends if one != tokenizer.eos_token_id]
    if others and isinstance(tokenizer.eos_token_id, int):
        yield "tokenizer.ggml.eot_token_id", others[0]
    opening = opening_tokens(tokenizer)
    if opening and opening != [getattr(tokenizer, "bos_token_id", None)]:
        raise _unlike(f"it begins every text with the tokens {opening}")
    closing = list(tokenizer(PROBE)["input_ids"])[-1:]
    yield "tokenizer.ggml.add_bos_token", bool(opening)
    yield "tokenizer.ggml.add_eos_token", closing == [tokenizer.eos_token_id]


def _templates(tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[str, Any]]:
    template = getattr(tokenizer, "chat_template", None)
    if isinstance(template, str):
        yield "tokenizer.chat_template", template
    elif isinstance(template, dict):
        if "default" in template:
            yield "tokenizer.chat_template", template["default"]
        others = {name: text for name, text in template.items() if name != "default"}
        for name, text in others.items():
            yield f"tokenizer.chat_template.{name}", text
        yield "tokenizer.chat_templates", list(others)
