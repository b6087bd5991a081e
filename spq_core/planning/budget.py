"""Bytes during a run: what was planned, what was spent, and the distortion each matrix gets."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from spq_core.planning.curve import Curve
from spq_core.planning.rules import Distortions, choose_dense, rule_named, search, total_bytes
from spq_core.streaming.sensitivity import EmbeddingStatistics

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

    Matrices are paid for in order. Before each block the distortions of all that remain are set anew,
    from the bytes that are left and from how far the curves have been off so far.
    """

    curves: Mapping[str, Curve]
    row_weights: dict[str, Float[Tensor, " out"]]
    """Per matrix of the source, how much each output counts."""
    embedding: EmbeddingStatistics
    wanted_bytes: float
    """For all matrices together."""
    allocation: str = "loss"
    """Name of the rule; see `rules`."""
    block_influence: dict[str, float] = field(default_factory=dict)
    """Importance of each matrix's layer, for the rule `mgaa`."""
    dense: frozenset[str] = frozenset()
    """Of the matrices that remain, those that stay as they are, because there are bytes for it."""
    dense_bytes: int = 2
    """Bytes of a weight that stays as it is."""
    keeps_dense: bool = True
    """Whether bytes that the finest lattices leave over go into matrices that stay as they are."""
    spent: dict[str, int] = field(default_factory=dict)
    predicted: dict[str, float] = field(default_factory=dict)
    """Bytes the curves gave for what is spent."""

    def distortions(self) -> Distortions:
        """Distortions of the matrices that are not yet paid for."""
        rest = {name: curve for name, curve in self.curves.items() if name not in self.spent}
        left = self.wanted_bytes - sum(self.spent.values())
        if self.keeps_dense:
            self.dense = choose_dense(rest, left / self.bytes_correction(), self.dense_bytes)
        for name in self.dense:
            left -= self.dense_bytes * rest.pop(name).elements
        rule = rule_named(self.allocation, self.block_influence)
        return search(rule, rest, left / self.bytes_correction())

    def bytes_correction(self) -> float:
        """Bytes spent over bytes predicted; 1 to begin with."""
        steady = total_bytes(self.curves, dict.fromkeys(self.curves, 2.0 ** (-32))) / 50
        return (sum(self.spent.values()) + steady) / (sum(self.predicted.values()) + steady)

    def pay(self, name: str, distortion: float, n_bytes: int) -> None:
        """Enter what a matrix took; its parts are entered one by one."""
        self.spent[name] = self.spent.get(name, 0) + n_bytes
        self.predicted[name] = self.curves[name].bytes_at(distortion)

    def stays(self, name: str) -> bool:
        """Whether a matrix is left as it is; if so, it is paid for."""
        if name in self.dense:
            self.spent[name] = self.dense_bytes * self.curves[name].elements
            self.predicted[name] = self.spent[name]
        return name in self.dense

    def keep_rows(self, name: str, kept: Tensor) -> None:
        """Forget the rows of a matrix that pruning removed."""
        if name in self.row_weights:
            self.row_weights[name] = self.row_weights[name][kept]

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Everything as JSON values and tensors."""
        names = list(self.curves)
        curves = self.curves.values()
        values = {
            "names": names,
            "elements": [curve.elements for curve in curves],
            "overhead_bytes": [curve.overhead_bytes for curve in curves],
            "wanted_bytes": self.wanted_bytes,
            "allocation": self.allocation,
            "turns": self.block_influence,
            "dense_bytes": self.dense_bytes,
            "leaves_whole": self.keeps_dense,
            "spent": self.spent,
            "predicted": self.predicted,
        }
        measured = [(curve.bits, curve.loss, curve.relative_error) for curve in curves]
        tensors = {
            "curves": torch.tensor(measured, dtype=torch.float64),
            "head_inputs": self.embedding.head_inputs,
            "probabilities": self.embedding.probabilities,
            "gradients": self.embedding.gradients,
        }
        weights = {f"weights.{name}": part for name, part in self.row_weights.items()}
        return values, tensors | weights

    def restore(self, values: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Become the budget whose `state` this is."""
        shapes = zip(values["elements"], values["overhead_bytes"], strict=True)
        measured = tensors["curves"].tolist()
        curves = [
            Curve(elements, overhead, *(tuple(one) for one in parts))
            for (elements, overhead), parts in zip(shapes, measured, strict=True)
        ]
        self.curves = dict(zip(values["names"], curves, strict=True))
        self.row_weights = {name: tensors[f"weights.{name}"] for name in values["names"]}
        self.embedding = EmbeddingStatistics(
            tensors["head_inputs"], tensors["probabilities"], tensors["gradients"]
        )
        self.wanted_bytes = values["wanted_bytes"]
        self.allocation, self.block_influence = values["allocation"], values["turns"]
        self.dense_bytes = values["dense_bytes"]
        self.keeps_dense = values["leaves_whole"]
        self.spent, self.predicted = values["spent"], values["predicted"]


def empty_budget() -> Budget:
    """Stands in a stage until the state of a killed run is restored."""
    nothing = torch.empty(0)
    return Budget({}, {}, EmbeddingStatistics(nothing, nothing, nothing), 0.0)
