"""Bytes during a run: what was planned, what was spent, and the level each matrix gets."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from spq_core.allocation.curve import Curve
from spq_core.allocation.rules import Levels, Rule, one_level, search, total_bytes
from spq_core.calibration.sensitivity import EmbeddingStatistics

TEMPER = 0.7
"""Row weights enter to this power: measured on few tokens, they are less uneven than they look."""
LEAST_WEIGHT = 0.05
"""Of the mean. A row that calibration text never uses may matter to other text."""


def tempered(weights: Float[Tensor, " out"]) -> Float[Tensor, " out"]:
    """Draw weights towards their mean: (max(w, 5% of mean))^0.7 · mean^0.3."""
    mean = weights.mean().clamp(min=torch.finfo(torch.float32).tiny)
    return weights.clamp(min=LEAST_WEIGHT * mean) ** TEMPER * mean ** (1 - TEMPER)


def token_weights(probabilities: Float[Tensor, " vocabulary"], tokens: int) -> Tensor:
    """How much each token's row counts; one that was never predicted counts as a tenth of a token."""
    return tempered(probabilities + 0.1 / tokens)


@dataclass(slots=True)
class Budget:
    """Shares out bytes as a run goes on, so that prediction errors do not add up.

    Matrices are paid for in order. Before each block the levels of all that remain are set anew,
    from the bytes that are left and from how far the curves have been off so far.
    """

    curves: Mapping[str, Curve]
    row_weights: dict[str, Float[Tensor, " out"]]
    """Per matrix of the source, how much each output counts."""
    embedding: EmbeddingStatistics
    wanted_bytes: float
    """For all matrices together."""
    rule: Rule = one_level
    spent: dict[str, int] = field(default_factory=dict)
    predicted: dict[str, float] = field(default_factory=dict)
    """Bytes the curves gave for what is spent."""

    def levels(self) -> Levels:
        """Levels of the matrices that are not yet paid for."""
        rest = {name: curve for name, curve in self.curves.items() if name not in self.spent}
        left = self.wanted_bytes - sum(self.spent.values())
        return search(self.rule, rest, left / self.excess())

    def excess(self) -> float:
        """Bytes spent over bytes predicted; 1 to begin with."""
        steady = total_bytes(self.curves, dict.fromkeys(self.curves, 2.0 ** (-32))) / 50
        return (sum(self.spent.values()) + steady) / (sum(self.predicted.values()) + steady)

    def pay(self, name: str, level: float, n_bytes: int) -> None:
        """Enter what a matrix took; its parts are entered one by one."""
        self.spent[name] = self.spent.get(name, 0) + n_bytes
        self.predicted[name] = self.curves[name].bytes_at(level)

    def keep_rows(self, name: str, kept: Tensor) -> None:
        """Forget the rows of a matrix that pruning removed."""
        if name in self.row_weights:
            self.row_weights[name] = self.row_weights[name][kept]
