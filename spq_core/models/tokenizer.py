"""Load a model folder's tokenizer, without ever running code from the folder."""

from pathlib import Path

from jaxtyping import Int64
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from spq_core.errors import TokenizerError
from spq_core.models.model_folder import read_json_object

PROBE = "a b"
FILE_STARTS = (
    "token",
    "vocab",
    "merges",
    "spiece",
    "spm",
    "sentencepiece",
    "tekken",
    "added_tokens",
)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Return the tokenizer.

    `trust_remote_code` is given: left out, transformers would ask on stdin whether to run code.

    Raises:
        TokenizerError: the folder has none that transformers can build here.
    """
    if not any(path.name.startswith(FILE_STARTS) for path in folder.iterdir()):
        raise TokenizerError(
            f"{folder.name} has no tokenizer; put the files of its base model beside the weights (tokenizer.json, "
            "tokenizer_config.json)"
        )
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (
        ImportError
    ) as error:  # sentencepiece, tiktoken, protobuf: not every tokenizer needs them
        reason = _first_line(error)
        raise TokenizerError(
            f"{folder.name}: its tokenizer needs a package that is not installed here: {reason}"
        ) from None
    except Exception as error:  # the readers of tokenizer files raise errors of many kinds
        raise TokenizerError(
            f"{folder.name} has no usable tokenizer: {_first_line(error)}"
        ) from error


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:200]


def opening_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What the tokenizer puts in front of every text: a beginning-of-sequence token, or nothing."""
    whole = list(tokenizer(PROBE)["input_ids"])
    bare = list(tokenizer(PROBE, add_special_tokens=False)["input_ids"])
    for start in range(len(whole) - len(bare) + 1):
        if whole[start : start + len(bare)] == bare:
            return whole[:start]
    return []


def require_rows(
    tokens: Int64[Tensor, "n length"], tokenizer: PreTrainedTokenizerBase, folder: Path
) -> None:
    """Make sure that the model's embedding has a row for every token.

    Raises:
        TokenizerError: it has not; the tokenizer is of another model, or was extended alone.
    """
    config = read_json_object(folder / "config.json")
    text = config.get("text_config")
    rows = config.get("vocab_size", text.get("vocab_size") if isinstance(text, dict) else None)
    largest = int(tokens.max()) if tokens.numel() else 0
    if not isinstance(rows, int) or largest < rows:
        return
    token = tokenizer.convert_ids_to_tokens(largest)
    if largest == tokenizer.pad_token_id:
        end = tokenizer.eos_token
        raise TokenizerError(
            f"{folder.name}: the tokenizer pads with {token!r}, id {largest}, and the model's embedding has "
            f"{rows} rows; set pad_token in tokenizer_config.json to a token that the model has"
            f"{f', such as {end!r}' if end else ''}"
        )
    raise TokenizerError(
        f"{folder.name}: the tokenizer gives id {largest} for {token!r}, and the model's embedding has {rows} "
        "rows; the tokenizer belongs to another model, or the embedding was not resized with it"
    )
