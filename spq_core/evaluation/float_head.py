"""A head that computes in float32 behind a model that does not.

Logits in bfloat16 have three digits; differences between two models' predictions are smaller than that.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from spq_core.formats.slicing import is_float

ROWS_AT_ONCE = 16384
"""Of a head that is widened as it is used: whole, it would take gigabytes."""


class FloatHead(nn.Module):
    """Applies a head to states in float32."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    @property
    def weight(self) -> Tensor:
        """The head's, for models that ask it which inputs it takes (Mamba)."""
        head: Any = self.head
        found: Tensor = head.weight
        return found

    def forward(self, states: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch vocabulary"]:
        """Logits in float32."""
        wide = states.float()
        if not is_float(self.head):  # ours compute in the dtype of what they receive
            product: Tensor = self.head(wide)
            return product
        weight: Tensor = self.head.weight
        bias: Tensor | None = self.head.bias
        parts = [
            functional.linear(wide, weight[start : start + ROWS_AT_ONCE].float())
            for start in range(0, len(weight), ROWS_AT_ONCE)
        ]
        logits = torch.cat(parts, dim=-1)
        return logits if bias is None else logits + bias.float()


def widen_head(model: PreTrainedModel) -> None:
    """Let a model's head compute in float32, the rest of it in its own dtype."""
    head = model.get_output_embeddings()
    if head is not None:
        model.set_output_embeddings(FloatHead(head))
