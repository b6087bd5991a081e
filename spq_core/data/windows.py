"""Text to token windows of equal length."""

from collections.abc import Sequence

import torch
from jaxtyping import Int64
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from spq_core.errors import DatasetError
from spq_core.models.tokenizer import opening_tokens


def padded_lines(
    tokenizer: PreTrainedTokenizerBase, lines: Sequence[str], length: int
) -> Int64[Tensor, "n length"]:
    """Encode each line alone, cut or padded to `length` with the tokenizer's pad token."""
    rows: list[list[int]] = []
    for line in lines:
        ids = list(tokenizer(line)["input_ids"])[:length]
        padding = [_pad_id(tokenizer)] * (length - len(ids))
        rows.append([*padding, *ids] if tokenizer.padding_side == "left" else [*ids, *padding])
    return torch.tensor(rows, dtype=torch.int64)


def consecutive_windows(
    tokenizer: PreTrainedTokenizerBase, text: str, length: int, limit: int | None
) -> Int64[Tensor, "n length"]:
    """Encode a text once and cut it into windows that do not overlap; the remainder is dropped.

    Where the tokenizer opens texts with a token (of the beginning of a sequence), every window begins with
    it, as the model has seen every text begin: some models fall apart without.

    Raises:
        DatasetError: the text has fewer tokens than one window.
    """
    opening = opening_tokens(tokenizer)
    ids = tokenizer(text, verbose=False, add_special_tokens=not opening)["input_ids"]
    fresh = length - len(opening)
    count = len(ids) // fresh
    if count == 0:
        raise DatasetError(f"the text has {len(ids)} tokens, one window needs {fresh}")
    count = count if limit is None else min(count, limit)
    cut = torch.tensor(ids[: count * fresh], dtype=torch.int64).view(count, fresh)
    return torch.cat([torch.tensor([opening], dtype=torch.int64).expand(count, -1), cut], dim=1)


def first_tokens(
    tokenizer: PreTrainedTokenizerBase, text: str, count: int
) -> Int64[Tensor, " length"]:
    """The first tokens of a text as the tokenizer gives them; at most `count`."""
    return torch.tensor(tokenizer(text, verbose=False)["input_ids"][:count], dtype=torch.int64)


def spread_windows(
    tokenizer: PreTrainedTokenizerBase, text: str, length: int, count: int, *, fewer: bool = False
) -> Int64[Tensor, "count length"]:
    """Encode a text once and take `count` windows of it, evenly spaced.

    Args:
        fewer: take all there are, if there are not so many.

    Raises:
        DatasetError: the text has fewer than `count` windows.
    """
    windows = consecutive_windows(tokenizer, text, length, None)
    count = min(count, len(windows)) if fewer else count
    if len(windows) < count:
        raise DatasetError(
            f"calibration asks for {count} windows of {length} tokens, the text has {len(windows)}"
        )
    return windows[evenly(len(windows), count)]


def evenly(total: int, count: int) -> Int64[Tensor, " count"]:
    """Indices of `count` of `total` things, evenly spaced, the first and the last among them; all if there are fewer."""
    return torch.linspace(0, total - 1, min(count, total)).long()


def _pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    for candidate in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if isinstance(candidate, int):
            return candidate
    return 0
