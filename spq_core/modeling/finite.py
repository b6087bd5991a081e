"""Whether a tensor holds numbers only."""

import torch
from torch import Tensor

ROWS_AT_ONCE = 4096


def all_finite(tensor: Tensor) -> bool:
    """No NaN and no infinity; looked at some thousand rows at a time, for the test makes copies."""
    parts = torch.split(tensor, ROWS_AT_ONCE) if tensor.ndim else (tensor,)
    return all(bool(torch.isfinite(part).all()) for part in parts)
