"""Which members come next, and when no more are needed: pure rules. Free of torch."""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from spq_core.recipe.catalog import resolve
from spq_core.sweep.document import Bisect, Objective, Sweep
from spq_core.sweep.front import Figures, keeps_limits
from spq_core.sweep.members import Member, bisected_member

DIGITS = 9
"""That a halved value is rounded to, so that it reads like a value."""

Stopped = Literal["infeasible", "target", "failures", "canceled"]
"""Why a member was not made."""


class Tried(NamedTuple):
    """What sets a member apart, and what is known of it."""

    fields: Mapping[str, object]
    ended: bool
    row: Figures | None
    """Figures, if it has some and did not fail."""


def next_members(sweep: Sweep, tried: Sequence[Tried], dataset: str | None) -> tuple[Member, ...]:
    """Members to add, numbered on; none where the search is over, or waits for one that is under way."""
    search = sweep.search
    if not isinstance(search, Bisect):
        return ()
    value = _next_value(search, sweep.objective, tried)
    if value is None:
        return ()
    return (bisected_member(search, value, len(tried) + 1, dataset),)


def stops(sweep: Sweep, tried: Sequence[Tried]) -> Stopped | None:
    """Why members that are not under way need not be made; None if they do."""
    rule, objective = sweep.early_stop, sweep.objective
    ended = [one for one in tried if one.ended]
    if rule.target is not None and any(
        one.row is not None and _reaches(one.row, objective, rule.target) for one in ended
    ):
        return "target"
    failed = sum(one.row is None for one in ended)
    if rule.stop_after_failures is not None and failed >= rule.stop_after_failures:
        return "failures"
    return None


def is_too_large(objective: Objective, least_bytes: float, source_bytes: float) -> bool:
    """Whether an artifact of at least so many bytes breaks a limit of the objective."""
    sizes = {"bytes_on_disk": least_bytes, "bytes_ratio": least_bytes / max(1.0, source_bytes)}
    limits: Mapping[str, float | None] = {
        name: limit.max for name, limit in objective.subject_to.items()
    }
    return any(
        limit is not None and name in sizes and sizes[name] > limit
        for name, limit in limits.items()
    )


def _next_value(search: Bisect, objective: Objective, tried: Sequence[Tried]) -> float | None:
    base = resolve(search.base).metadata.name
    kept: list[float] = []
    broken: list[float] = []
    for one in tried:
        value = one.fields.get(search.field)
        if not isinstance(value, int | float) or one.fields["recipe"] != base:
            continue  # a member beside the search
        if not one.ended:
            return None
        keeps = one.row is not None and keeps_limits(one.row, objective)
        (kept if keeps else broken).append(float(value))
    if not kept or not broken:
        return None  # the largest does not keep the limits, or the smallest does
    high, low = min(kept), max((value for value in broken if value < min(kept)), default=None)
    if low is None or high - low <= search.tolerance:
        return None
    return round((low + high) / 2, DIGITS)


def _reaches(row: Figures, objective: Objective, target: float) -> bool:
    value = row.get(objective.figure)
    if not isinstance(value, int | float) or not keeps_limits(row, objective):
        return False
    return value >= target if objective.maximize is not None else value <= target
