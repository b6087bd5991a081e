"""The quality gate: a result must keep the limits of its recipe on every evaluation text."""

from collections.abc import Iterator
from typing import NamedTuple

from spq_core.errors import SpqError
from spq_core.evaluation.measure import Measurement
from spq_core.evaluation.settings import Gates


class QualityGateError(SpqError):
    """The result is worse than the recipe allows."""

    code = "quality_gate_failed"

    def __init__(self, figure: str, value: float, limit: float) -> None:
        super().__init__(figure, value, limit)
        self.figure, self.value, self.limit = figure, value, limit

    def __str__(self) -> str:
        return f"{self.figure} is {self.value:.4g}, the recipe allows {self.limit:.4g}"


class _Check(NamedTuple):
    figure: str
    value: float
    limit: float
    keeps: bool


def check_gates(gates: Gates, measurement: Measurement, result: str, source: str) -> None:
    """Compare what was measured with the recipe's limits.

    Args:
        result, source: names of the two models in the measurement.

    Raises:
        QualityGateError: naming the figure, the text, the value and the limit.
    """
    for check in _checks(gates, measurement, result, source):
        if not check.keeps:
            raise QualityGateError(check.figure, check.value, check.limit)


def _checks(gates: Gates, measurement: Measurement, result: str, source: str) -> Iterator[_Check]:
    """Every limit on every text; a figure that is not a number keeps none."""
    before = measurement.models[source].quality
    for text, quality in measurement.models[result].quality.items():
        perplexities = [quality["perplexity"], before[text]["perplexity"]]
        ratio, most = (
            (perplexities[0] or 0.0) / (perplexities[1] or 1.0),
            gates.max_perplexity_ratio,
        )
        if most is not None:
            yield _Check(f"perplexity ratio to the source on {text}", ratio, most, ratio <= most)
        kl, top1 = quality["kl"], quality["top1"]
        if gates.max_kl is not None and kl is not None:
            yield _Check(f"KL from the source on {text}", kl, gates.max_kl, kl <= gates.max_kl)
        if gates.min_top1 is not None and top1 is not None:
            keeps = top1 >= gates.min_top1
            yield _Check(f"top-1 agreement with the source on {text}", top1, gates.min_top1, keeps)
