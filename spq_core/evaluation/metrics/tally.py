"""What a metric sees of a model, some positions at a time."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from jaxtyping import Float, Int64
from torch import Tensor


@dataclass(frozen=True)
class Positions:
    """Some consecutive positions of a window, and what models predict there."""

    logits: Float[Tensor, "t vocab"]
    reference_logits: Float[Tensor, "t vocab"] | None
    """The reference's; None for the reference itself, or without one."""
    targets: Int64[Tensor, " t"]
    """The tokens that come."""
    before: Int64[Tensor, " n"]
    """The window's tokens in front of the targets."""
    decode: Callable[[Tensor], str]
    """The text of tokens."""

    @cached_property
    def log_probabilities(self) -> Float[Tensor, "t vocab"]:
        """In float32."""
        return self.logits.float().log_softmax(dim=-1)

    @cached_property
    def reference_log_probabilities(self) -> Float[Tensor, "t vocab"] | None:
        """In float32."""
        reference = self.reference_logits
        return None if reference is None else reference.float().log_softmax(dim=-1)

    @cached_property
    def text_bytes(self) -> int:
        """Bytes of text, in UTF-8, that the targets add to what was before."""
        text = self.decode(self.before)
        longer = self.decode(torch.cat([self.before, self.targets]))
        return len(longer.encode()) - len(text.encode())


class Tally(Protocol):
    """A metric's sum over positions; one per model and text."""

    def add(self, positions: Positions) -> None:
        """Take in some positions."""
        ...

    def value(self) -> float | None:
        """The figure over all positions; None where it needs a reference and there is none.

        Not a number where the model's predictions are none.
        """
        ...
