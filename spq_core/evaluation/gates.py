"""The quality gate: a result must keep the limits of its recipe on every evaluation text."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from spq_core.errors import SpqError
from spq_core.evaluation.measure import Measurement
from spq_core.evaluation.settings import Gates, task_of

WORDS = {
    "perplexity_ratio": "perplexity ratio to the source",
    "kl": "KL from the source",
    "top1": "top-1 agreement with the source",
}


class QualityGateError(SpqError):
    """The result is worse than the recipe allows."""

    code = "quality_gate_failed"

    def __init__(self, figure: str, value: float, limit: float) -> None:
        super().__init__(figure, value, limit)
        self.figure, self.value, self.limit = figure, value, limit

    def __str__(self) -> str:
        return f"{self.figure} is {self.value:.4g}, the recipe allows {self.limit:.4g}"


class GateNotMeasuredError(SpqError):
    """A limit of a task's figure that the task does not have. The artifact is finished, and kept."""

    code = "evaluation_failed"

    def __init__(self, name: str, known: Iterable[str]) -> None:
        super().__init__(name)
        self.name, self.known = name, sorted(known)

    def __str__(self) -> str:
        return (
            f"the gate on {self.name} cannot be judged: no such figure was measured; of tasks there are "
            f"{', '.join(self.known) or 'none'}"
        )


class _Check(NamedTuple):
    figure: str
    value: float
    limit: float
    keeps: bool


def check_gates(gates: Gates, measurement: Measurement, result: str) -> None:
    """Compare what was measured with the recipe's limits.

    Args:
        result: name of the model in the measurement, whose reference is the source.

    Raises:
        QualityGateError: naming the figure, the text, the value and the limit.
        GateNotMeasuredError: a limit is of a task's figure that there is not.
    """
    for check in _checks(gates, measurement, result):
        if not check.keeps:
            raise QualityGateError(check.figure, check.value, check.limit)


def _checks(gates: Gates, measurement: Measurement, result: str) -> Iterator[_Check]:
    """Every limit on every text; a figure that is not a number keeps none, one that is not there is passed over."""
    measured = measurement.models[result]
    tasks = {
        f"{task}.{name}": value
        for task, figures in measured.tasks.items()
        for name, value in figures.items()
    }
    for text, figures in [
        *measured.quality.items(),
        *([("its questions", tasks)] if tasks else []),
    ]:
        for name, limit in gates.at_most.items():
            value = figures.get(name)
            if value is not None:
                yield _Check(f"{_called(name)} on {text}", value, limit, value <= limit)
        for name, limit in gates.at_least.items():
            value = figures.get(name)
            if value is not None:
                yield _Check(f"{_called(name)} on {text}", value, limit, value >= limit)
    for name in (*gates.at_most, *gates.at_least):  # last: what is measured is judged first
        if task_of(name) is not None and tasks.get(name) is None:
            raise GateNotMeasuredError(name, tasks)


def _called(name: str) -> str:
    return WORDS.get(name, name)
