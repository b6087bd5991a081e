"""Which members come next, and when no more are needed: pure rules. Free of torch."""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from spq_core.errors import RecipeError
from spq_core.sweep.document import MOST_MEMBERS, Bisect, Objective, Sweep
from spq_core.sweep.front import Figures, keeps_limits
from spq_core.sweep.members import Member, bisected_member

DIGITS = 9
"""That a halved value is rounded to, so that it reads like a value."""

Stopped = Literal["infeasible", "target", "failures", "canceled"]
"""Why a member was not made."""


class Tried(NamedTuple):
    """What sets a member apart, and what is known of it."""

    fields: Mapping[str, object]
    recipe_sha256: str
    ended: bool
    """It has ended, or will not be made."""
    failed: bool = False
    """It came to no result, or to one that its own gates refuse."""
    row: Figures | None = None
    """Figures, if it has some."""

    @property
    def stands(self) -> bool:
        """Whether it is a result."""
        return self.ended and not self.failed and self.row is not None


def next_members(sweep: Sweep, tried: Sequence[Tried], dataset: str | None) -> tuple[Member, ...]:
    """Members to add, numbered on; none where the search is over, or waits for one that is under way or failed.

    Raises:
        RecipeError: no recipe has the value that comes next.
    """
    search = sweep.search
    if not isinstance(search, Bisect) or len(tried) >= MOST_MEMBERS or stops(sweep, tried):
        return ()
    own = [one for one in tried if _is_own(search, one, dataset)]
    value = _next_value(search, sweep.objective, own)
    if value is None:
        return ()
    member = bisected_member(search, value, len(tried) + 1, dataset)
    known = {one.recipe_sha256 for one in own}
    return () if member.recipe.sha256() in known else (member,)


def stops(sweep: Sweep, tried: Sequence[Tried]) -> Stopped | None:
    """Why members that are not under way need not be made; None if they do."""
    rule, objective = sweep.early_stop, sweep.objective
    if rule.target is not None and any(
        one.stands and one.row is not None and _reaches(one.row, objective, rule.target)
        for one in tried
    ):
        return "target"
    failed = sum(one.ended and one.failed for one in tried)
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


def _is_own(search: Bisect, one: Tried, dataset: str | None) -> bool:
    """Whether a member is one that the search would make, whoever asked for it."""
    value = one.fields.get(search.field)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        member = bisected_member(search, value, 0, dataset)
    except RecipeError:
        return False
    return member.recipe.sha256() == one.recipe_sha256


def _next_value(search: Bisect, objective: Objective, own: Sequence[Tried]) -> float | None:
    kept: list[float] = []
    broken: list[float] = []
    for one in own:
        if not one.ended or (one.failed and one.row is None):
            return None  # it is under way; or it failed for another reason, and can be tried again
        keeps = one.stands and one.row is not None and keeps_limits(one.row, objective)
        (kept if keeps else broken).append(float(str(one.fields[search.field])))
    if not kept or not broken:
        return None  # the largest does not keep the limits, or the smallest does
    high, low = min(kept), max((value for value in broken if value < min(kept)), default=None)
    if low is None or high - low <= search.tolerance:
        return None
    if isinstance(search.low, int) and isinstance(search.high, int):
        middle: float = (int(low) + int(high)) // 2
    else:
        middle = round((low + high) / 2, DIGITS)
    return middle if low < middle < high else None


def _reaches(row: Figures, objective: Objective, target: float) -> bool:
    value = row.get(objective.figure)
    if not isinstance(value, int | float) or not keeps_limits(row, objective):
        return False
    return value >= target if objective.maximize is not None else value <= target
