"""Which members of a sweep are worth looking at: pure rules over figures. Free of torch.

A figure of quality is measured on so much text and no more, so two members are told apart only where their difference is more
than its error. The errors of both are added in squares, as if they were independent; measured on the same windows they are
not, and the true error of a difference is smaller: ties are called more often than need be, never a difference that is none.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple, TypeGuard

from spq_core.evaluation.certainty import student_t
from spq_core.sweep.document import Objective, Range, Sweep

LARGER_IS_BETTER = frozenset({"top1", "retention", "theoretical_rate"})
EXACT = frozenset({"bytes_on_disk", "bytes_ratio", "resident_bytes", "theoretical_rate"})
SIZES = frozenset({"bytes_on_disk", "bytes_ratio", "resident_bytes"})
SAME_SIZE = 1e-3
"""Sizes that differ by no larger a share are one size: what figures of a report happen to be written with makes some bytes."""
Figures = Mapping[str, Any]
"""Of a member's result, as a row of a table has them."""


class Best(NamedTuple):
    """The best member of those that keep the limits."""

    number: int | None
    """None where none does."""
    tied: tuple[int, ...]
    """Others that so much text does not tell from it."""


class Verdict(NamedTuple):
    """What members came to."""

    front: tuple[int, ...]
    """Numbers of those that no other beats."""
    best: int | None
    tied: tuple[int, ...]

    def document(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {"front": list(self.front), "best": self.best, "tied": list(self.tied)}

    def kept(self, sweep: Sweep, numbers: Collection[int]) -> set[int]:
        """Of the members with those numbers, the ones whose artifacts stay."""
        front = {*self.front} or {*numbers}  # where nothing can be told, nothing is dropped
        best = {self.best} if self.best is not None else front
        chosen = {"all": {*numbers}, "front": front | best, "best": best, "none": set[int]()}
        return chosen[sweep.keep]


def judge(sweep: Sweep, figures: Mapping[int, Figures]) -> Verdict:
    """Compare the members that have figures.

    Args:
        figures: by number; of members that failed, none.
    """
    best = best_member(figures, sweep.objective)
    return Verdict(pareto_front(figures, sweep.front), best.number, best.tied)


def pareto_front(figures: Mapping[int, Figures], names: Sequence[str]) -> tuple[int, ...]:
    """Members that no other beats: is at least as good in all figures, and better in one beyond error; sizes nearly alike are alike.

    Args:
        figures: by member's number; members that lack a figure are left out.
    """
    whole = {
        number: row
        for number, row in figures.items()
        if all(_is_number(row.get(name)) for name in names)
    }
    return tuple(
        number
        for number, row in whole.items()
        if not any(
            _beats(other, row, names)
            for their_number, other in whole.items()
            if their_number != number
        )
    )


def best_member(figures: Mapping[int, Figures], objective: Objective) -> Best:
    """The best by a figure among those that keep all limits."""
    name = objective.figure
    upwards = objective.maximize is not None
    feasible = {
        number: row
        for number, row in figures.items()
        if keeps_limits(row, objective) and _is_number(row.get(name))
    }
    if not feasible:
        return Best(None, ())
    first = (max if upwards else min)(feasible, key=lambda number: feasible[number][name])
    tied = tuple(
        number
        for number, row in feasible.items()
        if number != first and not _differs(row, feasible[first], name)
    )
    return Best(first, tied)


def keeps_limits(row: Figures, objective: Objective) -> bool:
    """Whether a member has every figure that is limited, and within its limits."""
    return not broken_limits(row, objective)


def broken_limits(row: Figures, objective: Objective) -> tuple[str, ...]:
    """Figures that are not within their limits, or that a member does not have."""

    def keeps(name: str, limits: Range) -> bool:
        value = row.get(name)
        return (
            _is_number(value)
            and (limits.min is None or value >= limits.min)
            and (limits.max is None or value <= limits.max)
        )

    return tuple(name for name, limits in objective.subject_to.items() if not keeps(name, limits))


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and math.isfinite(value)


def _beats(one: Figures, other: Figures, names: Sequence[str]) -> bool:
    """Nowhere worse, and somewhere better beyond what error can be."""
    no_worse = all(_better_or_equal(one[name], other[name], name) for name in names)
    return no_worse and any(
        one[name] != other[name] and _differs(one, other, name) for name in names
    )


def _better_or_equal(one: float, other: float, name: str) -> bool:
    if name in SIZES:
        return one <= other * (1 + SAME_SIZE)
    return one >= other if name in LARGER_IS_BETTER else one <= other


def _differs(one: Figures, other: Figures, name: str) -> bool:
    """Whether two figures differ by more than their errors allow; where errors are not known, nothing is told apart."""
    known = [row.get(f"{name}_se") for row in (one, other)]
    if name in SIZES:
        larger, smaller = (choose(one[name], other[name]) for choose in (max, min))
        return bool(larger > smaller * (1 + SAME_SIZE))
    if name in EXACT:
        return bool(one[name] != other[name])
    errors = [float(error) for error in known if error is not None]
    if len(errors) < len(known):
        return False
    windows = min(int(row.get("windows") or 0) for row in (one, other))
    margin = student_t(windows - 1) if windows > 1 else 0.0
    difference = abs(float(one[name]) - float(other[name]))
    return difference > margin * math.hypot(*errors)
