"""The output head of a model, worked through some thousand rows at a time.

A vocabulary has up to hundreds of thousands of rows; as float32 they would take more memory than a
decoder layer.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from spq_core.formats.slicing import float_weight, linear_at
from spq_core.models.skeleton import Skeleton

ROWS = 8192
TOKENS = 128
"""Logits exist for this many tokens at a time."""


class Logits(NamedTuple):
    """What a head says about some tokens."""

    values: Float[Tensor, "tokens vocabulary"]
    slope: Float[Tensor, "tokens vocabulary"] | None
    """Derivative of the values by the products behind them, for heads that bound their logits."""


class Head:
    """Logits and their gradients without a float32 copy of the head."""

    def __init__(self, rest: nn.Module, skeleton: Skeleton) -> None:
        """Take the head of `rest`, the model without its decoder layers."""
        self.linear = linear_at(rest, skeleton.head_path)
        self.cap: float | None = getattr(skeleton.text_config, "final_logit_softcapping", None)
        """Some models bound logits z by cap · tanh(z / cap)."""

    @property
    def vocabulary(self) -> int:
        """Number of rows."""
        return self.linear.out_features

    @torch.no_grad()
    def logits(self, states: Float[Tensor, "tokens dim"]) -> Logits:
        """Apply the head to normed states."""
        values = torch.empty(states.shape[0], self.vocabulary, device=states.device)
        for some in self._slices():
            values[:, some] = states.float() @ float_weight(self.linear, some).T
        if self.linear.bias is not None:
            values += self.linear.bias
        if self.cap is None:
            return Logits(values, None)
        bounded = (values / self.cap).tanh_()
        return Logits(self.cap * bounded, 1 - bounded.square())

    @torch.no_grad()
    def gradient(
        self, error: Float[Tensor, "tokens vocabulary"], slope: Tensor | None
    ) -> Float[Tensor, "tokens dim"]:
        """Gradient at the states, from the one at the logits (which is overwritten)."""
        if slope is not None:
            error *= slope
        gradient = torch.zeros(error.shape[0], self.linear.in_features, device=error.device)
        for some in self._slices():
            gradient += error[:, some] @ float_weight(self.linear, some)
        return gradient

    def _slices(self) -> list[slice]:
        return [slice(start, start + ROWS) for start in range(0, self.vocabulary, ROWS)]


@torch.no_grad()
def mean_divergence(
    source: Head,
    source_states: Sequence[Float[Tensor, "length dim"]],
    other: Head,
    other_states: Sequence[Float[Tensor, "length dim"]],
) -> float:
    """KL of the other model's predictions from the source's, in nats per token.

    Args:
        source_states, other_states: what each head receives for the same tokens.
    """
    total, tokens = 0.0, 0
    for wanted, found in zip(source_states, other_states, strict=True):
        for start in range(0, len(wanted), TOKENS):
            some = slice(start, start + TOKENS)
            log_wanted = source.logits(wanted[some]).values.log_softmax(dim=-1)
            log_found = other.logits(found[some]).values.log_softmax(dim=-1)
            total += float((log_wanted.exp() * (log_wanted - log_found)).sum())
        tokens += len(wanted)
    return total / tokens
