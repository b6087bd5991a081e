"""A metric over windows: its mean, how sure that is, and how it compares with the reference.

Tokens of one window are no independent samples: they share a text. So windows are: the standard error is that of a ratio
of sums over windows (Cochran, Sampling Techniques, 6.4), and a comparison is made window by window, which leaves out how
hard each window is for any model.
"""

import math
from array import array
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from spq_core.evaluation.metrics.metric import Measured, MetricRule

LEAST_WINDOWS = 2
"""Fewer say nothing about how figures vary."""


class Mean(NamedTuple):
    """A mean and its standard error; None where too few windows tell."""

    value: float
    error: float | None


def mean_over_windows(sums: Float[Tensor, " n"], weights: Float[Tensor, " n"]) -> Mean:
    """Σ sums / Σ weights, and its standard error over the n windows."""
    total = float(weights.sum())
    value = float(sums.sum()) / total if total else math.nan
    count = len(sums)
    if count < LEAST_WINDOWS or not math.isfinite(value):
        return Mean(value, None)
    residuals = sums - value * weights
    variance = float(residuals.square().sum()) * count / (count - 1)
    return Mean(value, math.sqrt(variance) / total)


class Sums:
    """One metric of one model."""

    def __init__(self, rule: MetricRule) -> None:
        """Begin with no windows."""
        self.rule = rule
        self._sums: list[float] = []
        self._weights: list[float] = []
        # In one piece: small tensors would stay behind between logits, and what those took could not be used again.
        self._values = array("f")

    def begin_window(self) -> None:
        """What is added from now on is of another window."""
        self._sums.append(0.0)
        self._weights.append(0.0)

    def add(self, measured: Measured | None) -> None:
        """Take in some positions of the window."""
        if measured is None:
            return
        self._sums[-1] += float(measured.values.double().sum())
        self._weights[-1] += measured.weight
        if self.rule.quantiles:
            self._values.frombytes(measured.values.float().cpu().numpy().tobytes())

    @property
    def sums(self) -> Float[Tensor, " n"]:
        """By window."""
        return torch.tensor(self._sums, dtype=torch.float64)

    @property
    def weights(self) -> Float[Tensor, " n"]:
        """By window."""
        return torch.tensor(self._weights, dtype=torch.float64)

    def figures(self, name: str, reference: Sequence[float] | None) -> dict[str, float | None]:
        """The metric, its standard error, and what is reported beside it; None for what cannot be had.

        Args:
            reference: sums by window of the model that this one is compared with; None for that model itself.
        """
        rule, measured = self.rule, any(self._weights)
        mean = mean_over_windows(self.sums, self.weights) if measured else None
        figures: dict[str, float | None] = {
            name: None if mean is None else rule.figure(mean.value),
            f"{name}_se": _carried(rule, mean),
        }
        if rule.quantiles:
            values = torch.frombuffer(self._values, dtype=torch.float32) if measured else None
            for share in rule.quantiles:
                quantile = None if values is None else _quantile(values, share)
                figures[f"{name}_p{100 * share:g}"] = quantile
        if rule.ratio is not None:
            figures |= self._ratio(rule.ratio, reference)
        return figures

    def _ratio(self, name: str, reference: Sequence[float] | None) -> dict[str, float | None]:
        if reference is None:
            return {name: None, f"{name}_se": None}
        theirs = torch.tensor(reference, dtype=torch.float64)
        mean = mean_over_windows(self.sums - theirs, self.weights)
        return {name: self.rule.figure(mean.value), f"{name}_se": _carried(self.rule, mean)}


def _carried(rule: MetricRule, mean: Mean | None) -> float | None:
    if mean is None or mean.error is None:
        return None
    return abs(rule.slope(mean.value)) * mean.error


def _quantile(values: Float[Tensor, " n"], share: float) -> float:
    """The value that the share of all is at most; torch's own takes no more than 16 million."""
    place = max(1, math.ceil(share * len(values)))
    return float(values.kthvalue(place).values)
