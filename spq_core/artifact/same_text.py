"""Whether an artifact reads and ends text as its source does: tokenizer, templates, generation settings.

Rendering a chat is a function of the template and the special tokens, so both are compared as they are
loaded; a stranger's template is not run for it.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import AutoConfig, GenerationConfig, PreTrainedTokenizerBase

from spq_core.errors import TokenizerError
from spq_core.models.tokenizer import load_tokenizer

SAMPLES = (
    "The quick brown fox jumps over 13 lazy dogs.",
    " leading and  double spaces,\ttabs\n\nand lines\r\n",
    "Zürich – naïve café, 東京, Москва, 🙂🇨🇭, ﬁ",
    "1234567890 3.14159 1,000,000 0x7f",
    "def f(x):\n    return [y**2 for y in x if y != 'a']  # [INST] <|im_start|> <s>",
    "",
)
MAX_SPECIAL = 512
"""Special and added tokens that are tried, at most."""
UNCOMPARED = frozenset({"transformers_version", "_from_model_config", "_commit_hash"})
"""Of generation settings: they say where the settings came from."""


def differences(artifact: Path, source: Path) -> Iterator[str]:
    """What differs, in words; nothing if all is the same."""
    yield from _generation(artifact, source)
    try:
        wanted = load_tokenizer(source)
    except TokenizerError:
        return  # nobody can use it; nothing is lost
    try:
        found = load_tokenizer(artifact)
    except TokenizerError as error:
        yield str(error)
        return
    yield from _tokenizers(found, wanted)


def require_same_tokenizer(copy: Path, original: Path, name: str) -> None:
    """Make sure that a tokenizer reads text without its author's code as it does beside it, unused.

    transformers chooses a class otherwise where settings name code, though it does not run it.

    Args:
        name: of the model.

    Raises:
        TokenizerError: it does not, or cannot be built without that code.
    """
    difference = next(_tokenizers(load_tokenizer(copy), load_tokenizer(original)), None)
    if difference is not None:
        raise TokenizerError(
            f"{name}: its tokenizer_config.json names code (auto_map), without which transformers reads text "
            f"otherwise ({difference}); save the tokenizer again with a class of transformers' own"
        )


def _tokenizers(found: PreTrainedTokenizerBase, wanted: PreTrainedTokenizerBase) -> Iterator[str]:
    for what, theirs, ours in (
        ("tokenizer class", type(wanted).__name__, type(found).__name__),
        ("special tokens", _plain(wanted.special_tokens_map), _plain(found.special_tokens_map)),
        ("ids of special tokens", wanted.all_special_ids, found.all_special_ids),
        ("padding side", wanted.padding_side, found.padding_side),
        ("longest input", wanted.model_max_length, found.model_max_length),
        ("chat template", wanted.chat_template, found.chat_template),
    ):
        if theirs != ours:
            yield f"{what}: {str(ours)[:200]} instead of {str(theirs)[:200]}"
    for text in _texts(wanted):
        for special in (True, False):
            theirs = list(wanted(text, add_special_tokens=special)["input_ids"])
            ours = list(found(text, add_special_tokens=special)["input_ids"])
            if theirs != ours:
                yield f"tokens of {text[:60]!r}: {ours[:12]} instead of {theirs[:12]}"
                return


def _texts(tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """Samples, and every special or added token between words, as chats have them."""
    yield from SAMPLES
    added = [str(token) for token in tokenizer.get_added_vocab()]
    tokens = list(dict.fromkeys([*map(str, tokenizer.all_special_tokens), *added]))[:MAX_SPECIAL]
    yield " a".join(tokens)
    yield "".join(f"{token}[INST] word{token}\n" for token in tokens)


def _plain(tokens: dict[str, Any]) -> dict[str, str]:
    return {name: str(token) for name, token in tokens.items()}


def _generation(artifact: Path, source: Path) -> Iterator[str]:
    theirs, ours = _generation_settings(source), _generation_settings(artifact)
    for key in sorted(theirs.keys() | ours.keys()):
        if key not in UNCOMPARED and theirs.get(key) != ours.get(key):
            yield f"generation setting {key}: {ours.get(key)} instead of {theirs.get(key)}"


def _generation_settings(folder: Path) -> dict[str, Any]:
    """What `generate` would use: from its own file, else from the configuration."""
    if (folder / "generation_config.json").is_file():
        settings = GenerationConfig.from_pretrained(folder, local_files_only=True)
    else:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        settings = GenerationConfig.from_model_config(config)
    document: dict[str, Any] = settings.to_dict()
    return document
