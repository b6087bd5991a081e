"""The quality gate: a result must keep the limits of its recipe on every evaluation text."""

from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

from spq_core.errors import SpqError
from spq_core.evaluation.measure import Measurement
from spq_core.evaluation.settings import Gates, task_of

TASKS = "tasks"
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


class JudgedGate(NamedTuple):
    """A limit of a recipe, and what was measured."""

    figure: str
    dataset: str
    """The text, or `tasks`."""
    kind: Literal["max", "min"]
    limit: float
    measured: float | None
    """None where there is no such figure."""

    @property
    def passed(self) -> bool | None:
        """Whether it is kept; None if that cannot be told. A figure that is not a number keeps no limit."""
        if self.measured is None:
            return None
        if self.kind == "max":
            return self.measured <= self.limit
        return self.measured >= self.limit

    def document(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {**self._asdict(), "passed": self.passed}


def check_gates(gates: Gates, measurement: Measurement, result: str) -> None:
    """Compare what was measured with the recipe's limits.

    Args:
        result: name of the model in the measurement, whose reference is the source.

    Raises:
        QualityGateError: naming the figure, the text, the value and the limit.
        GateNotMeasuredError: a limit is of a task's figure that there is not.
    """
    judged = judged_gates(gates, measurement, result)
    for gate in judged:
        if gate.passed is False and gate.measured is not None:
            where = "its questions" if gate.dataset == TASKS else gate.dataset
            called = WORDS.get(gate.figure, gate.figure)
            raise QualityGateError(f"{called} on {where}", gate.measured, gate.limit)
    for gate in judged:
        if gate.passed is None:
            raise GateNotMeasuredError(gate.figure, _task_figures(measurement, result))


def judged_gates(
    gates: Gates, measurement: Measurement | None, result: str
) -> tuple[JudgedGate, ...]:
    """Every limit on every text that has the figure, and limits of tasks.

    Args:
        measurement: None where measuring failed: all limits, and nothing measured.
    """
    limits: list[tuple[Literal["max", "min"], str, float]] = [
        *(("max", name, limit) for name, limit in gates.at_most.items()),
        *(("min", name, limit) for name, limit in gates.at_least.items()),
    ]
    if measurement is None:
        return tuple(JudgedGate(name, "", kind, limit, None) for kind, name, limit in limits)
    tasks = _task_figures(measurement, result)
    found = [
        JudgedGate(name, text, kind, limit, figures[name])
        for text, figures in measurement.models[result].quality.items()
        for kind, name, limit in limits
        if figures.get(name) is not None
    ]
    return (
        *found,
        *(
            JudgedGate(name, TASKS, kind, limit, tasks.get(name))
            for kind, name, limit in limits
            if task_of(name) is not None
        ),
    )


def _task_figures(measurement: Measurement, result: str) -> dict[str, float | None]:
    return {
        f"{task}.{name}": value
        for task, figures in measurement.models[result].tasks.items()
        for name, value in figures.items()
    }
