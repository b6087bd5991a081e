"""Text to token windows of equal length."""

from collections.abc import Sequence

import torch
from jaxtyping import Int64
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from spq_core.errors import DatasetError


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

    Raises:
        DatasetError: the text has fewer tokens than one window.
    """
    ids = tokenizer(text, verbose=False)["input_ids"]
    count = len(ids) // length
    if count == 0:
        raise DatasetError(f"the text has {len(ids)} tokens, one window needs {length}")
    count = count if limit is None else min(count, limit)
    return torch.tensor(ids[: count * length], dtype=torch.int64).view(count, length)


def spread_windows(
    tokenizer: PreTrainedTokenizerBase, text: str, length: int, count: int
) -> Int64[Tensor, "count length"]:
    """Encode a text once and take `count` windows of it, evenly spaced.

    Raises:
        DatasetError: the text has fewer than `count` windows.
    """
    windows = consecutive_windows(tokenizer, text, length, None)
    if len(windows) < count:
        raise DatasetError(
            f"calibration asks for {count} windows of {length} tokens, the text has {len(windows)}"
        )
    return windows[torch.linspace(0, len(windows) - 1, count).long()]


def _pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    for candidate in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if isinstance(candidate, int):
            return candidate
    return 0
