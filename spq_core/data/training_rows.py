"""Rows of tokens that something is trained on."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int64
from torch import Tensor


@dataclass(frozen=True, slots=True)
class TrainingRows:
    """Rows in the order they are used, again from the start when they run out."""

    rows: Int64[Tensor, "n length"]
    real: Bool[Tensor, "n length"]
    """False for pads."""

    def batch(self, step: int, size: int) -> tuple[Tensor, Tensor]:
        """Rows of one step, counted from 0, and which of their tokens are real."""
        picked = torch.arange(step * size, (step + 1) * size) % len(self.rows)
        return self.rows[picked], self.real[picked]
