"""The ways in which llama.cpp cuts text before it merges, by the expressions in tokenizer.json that say the same. Free of torch.

Names are those of `tokenizer.ggml.pre` (llama.cpp's `src/llama-vocab.cpp`).
"""

from collections.abc import Iterator, Mapping
from typing import Any

from spq_core.errors import TokenizerError

CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
ENDINGS = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + ENDINGS
QWEN2 = CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + ENDINGS
QWEN35 = (
    CONTRACTIONS
    + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
BEFORE = r"[^\r\n\p{L}\p{N}]?"
SLASHES = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TEKKEN = f"{BEFORE}{UPPER}*{LOWER}+|{BEFORE}{UPPER}+{LOWER}*" + r"|\p{N}" + SLASHES
GPT4O = (
    f"{BEFORE}{UPPER}*{LOWER}+{CONTRACTIONS}?|{BEFORE}{UPPER}+{LOWER}*{CONTRACTIONS}?"
    + r"|\p{N}{1,3}"
    + SLASHES
)
DEEPSEEK3 = (
    r"\p{N}{1,3}",
    "[一-龥\u3040-ゟ゠-ヿ]+",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^"""
    + "\r\n"
    + r"""\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+["""
    + "\r\n"
    + r"""]*|\s*["""
    + "\r\n"
    + r"""]+|\s+(?!\S)|\s+""",
)

Cut = tuple[str, ...]
WORDS = "words"
"""GPT-2's expression, which is built into the cutting by bytes."""
DIGITS = "digits"
"""Each by itself."""
GROUPED = r"\p{N}"

NAMES: dict[Cut, str] = {
    (WORDS,): "gpt-2",
    (DIGITS, WORDS): "smollm",
    (GROUPED, WORDS): "smollm",
    (LLAMA3,): "smaug-bpe",
    (QWEN2,): "qwen2",
    (QWEN35,): "qwen35",
    (GPT4O,): "gpt-4o",
    (TEKKEN,): "tekken",
    DEEPSEEK3: "deepseek-v3",
}
WHOLE_WORDS_FIRST: dict[str, str] = {"smaug-bpe": "llama-bpe"}
"""Names of the same where a word that is a token is not made by merges (`ignore_merges`)."""
ALWAYS_WHOLE = frozenset({"llama-bpe", "tekken"})
NEVER_WHOLE = frozenset(NAMES.values()) - ALWAYS_WHOLE


def cutting_of(document: Mapping[str, Any]) -> str:
    """The name of a tokenizer's way.

    Args:
        document: what tokenizer.json says.

    Raises:
        TokenizerError: llama.cpp has none that is the same.
    """
    cuts = tuple(_cuts(document.get("pre_tokenizer")))
    name = NAMES.get(cuts)
    if name is None:
        raise TokenizerError(
            "profile gguf: llama.cpp has no way of cutting text that is this tokenizer's "
            f"({' then '.join(cuts)[:300] or 'none'}); use profile compact"
        )
    whole = bool(document["model"].get("ignore_merges"))
    if whole:
        name = WHOLE_WORDS_FIRST.get(name, name)
    if (whole and name in NEVER_WHOLE) or (not whole and name in ALWAYS_WHOLE):
        merges = "makes" if whole else "does not make"
        raise TokenizerError(
            f"profile gguf: this tokenizer {merges} whole words without merging, and llama.cpp's {name} does not agree; use "
            "profile compact"
        )
    return name


def _cuts(part: Mapping[str, Any] | None) -> Iterator[str]:
    if part is None:
        return
    kind = str(part.get("type"))
    if kind == "Sequence":
        for one in part["pretokenizers"]:
            yield from _cuts(one)
    else:
        yield from _KINDS.get(kind, _unknown)(part)


def _by_bytes(part: Mapping[str, Any]) -> Iterator[str]:
    if part.get("add_prefix_space"):
        yield "a space in front"
    if part.get("use_regex", True):
        yield WORDS


def _split(part: Mapping[str, Any]) -> Iterator[str]:
    if part.get("behavior") != "Isolated" or part.get("invert"):
        yield from _unknown(part)
        return
    pattern = part["pattern"]
    yield pattern.get("Regex") or f"the text {pattern.get('String')!r}"


def _digits(part: Mapping[str, Any]) -> Iterator[str]:
    yield DIGITS if part.get("individual_digits") else "numbers"


def _unknown(part: Mapping[str, Any]) -> Iterator[str]:
    yield f"{part.get('type')} as it is set here"


_KINDS = {"ByteLevel": _by_bytes, "Split": _split, "Digits": _digits}
