"""What a metric sees of a model, some positions at a time, and what it makes of them."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, NamedTuple

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
    decode: Callable[[Tensor], str] | None = None
    """The text of tokens; None where nothing tells."""

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
    def losses(self) -> Float[Tensor, " t"]:
        """Negative log-likelihood of each target, in nats."""
        return -self.log_probabilities.gather(1, self.targets[:, None])[:, 0]

    @cached_property
    def text_bytes(self) -> int | None:
        """Bytes of text, in UTF-8, that the targets add to what was before."""
        if self.decode is None:
            return None
        text = self.decode(self.before)
        longer = self.decode(torch.cat([self.before, self.targets.to(self.before.device)]))
        return len(longer.encode()) - len(text.encode())


class Measured(NamedTuple):
    """A metric at some positions."""

    values: Float[Tensor, " t"]
    """One a position."""
    weight: float
    """What the sum of values is divided by: the number of positions, or of something else in them."""


class MetricRule(ABC):
    """How a figure comes of positions: a mean over all of them, and what is made of that mean."""

    quantiles: ClassVar[tuple[float, ...]] = ()
    """Shares of positions (0–1) whose value at most is a figure, too."""
    ratio: ClassVar[str | None] = None
    """Name of the figure that compares a model with the reference, position by position, where there is one."""

    @abstractmethod
    def measure(self, positions: Positions) -> Measured | None:
        """The metric at some positions; None where it needs a reference and there is none."""

    def figure(self, mean: float) -> float:
        """What is shown of the mean."""
        return mean

    def slope(self, mean: float) -> float:
        """Derivative of `figure`, which carries the mean's standard error over to it."""
        del mean
        return 1.0


def per_token(values: Float[Tensor, " t"]) -> Measured:
    """A value a token, of which the mean is taken."""
    return Measured(values, float(len(values)))
