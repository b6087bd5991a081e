"""The members that a sweep document comes to. Free of torch."""

import copy
import random
from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any, NamedTuple

from pydantic import JsonValue

from spq_core.errors import RecipeError
from spq_core.recipe.catalog import resolve
from spq_core.recipe.document import Recipe, parse_recipe
from spq_core.sweep.document import MOST_MEMBERS, Bisect, Grid, RandomMembers, Sweep


class Member(NamedTuple):
    """One recipe of a sweep."""

    number: int
    """From 1."""
    fields: dict[str, JsonValue]
    """What sets it apart: the recipe's name, and the paths that were varied."""
    recipe: Recipe


def members(sweep: Sweep, dataset: str | None = None) -> tuple[Member, ...]:
    """All members that are known at the beginning; recipes that come to the same are one.

    Args:
        dataset: takes the place of every recipe's calibration dataset.

    Raises:
        RecipeError: a recipe or a path is wrong, or there are more than 64.
    """
    found: dict[str, tuple[Recipe, dict[str, JsonValue]]] = {}
    drawn = isinstance(sweep.search, RandomMembers)
    for recipe, fields in _variants(sweep):
        calibrated = _calibrated(recipe, dataset)
        digest = calibrated.sha256()
        before = found.get(digest, (calibrated, {}))[1]
        found[digest] = (calibrated, {**fields, **before})
        if len(found) > MOST_MEMBERS and not drawn:
            raise RecipeError(f"sweep: it has more than {MOST_MEMBERS} members")
    chosen = list(found.values())
    if isinstance(sweep.search, RandomMembers) and sweep.search.samples < len(chosen):
        draw = random.Random(sweep.search.seed)  # noqa: S311 - no secret
        chosen = draw.sample(chosen, sweep.search.samples)
    return tuple(
        Member(number, {"recipe": recipe.metadata.name, **fields}, recipe)
        for number, (recipe, fields) in enumerate(chosen, start=1)
    )


def bisected_member(search: Bisect, value: float, number: int, dataset: str | None) -> Member:
    """A member that a bisection comes to.

    Raises:
        RecipeError: the path or the value is wrong.
    """
    fields: dict[str, JsonValue] = {search.field: value}
    recipe = _calibrated(_varied(resolve(search.base), fields), dataset)
    return Member(number, {"recipe": recipe.metadata.name, **fields}, recipe)


def _variants(sweep: Sweep) -> Iterator[tuple[Recipe, dict[str, JsonValue]]]:
    for request in sweep.recipes:
        yield resolve(request), {}
    for grid in sweep.grid:
        base = resolve(grid.base)
        for fields in _combinations(grid):
            yield _varied(base, fields), fields
    if isinstance(sweep.search, Bisect):  # both ends are needed whatever comes out
        base = resolve(sweep.search.base)
        for value in (sweep.search.high, sweep.search.low):
            yield _varied(base, {sweep.search.field: value}), {sweep.search.field: value}


def _calibrated(recipe: Recipe, dataset: str | None) -> Recipe:
    if dataset is None:
        return recipe
    calibration = recipe.calibration.model_copy(update={"dataset": dataset})
    return recipe.model_copy(update={"calibration": calibration})


def _combinations(grid: Grid) -> Iterator[dict[str, JsonValue]]:
    moved: list[dict[str, JsonValue]] = [
        dict(zip(grid.zip, values, strict=True)) for values in zip(*grid.zip.values(), strict=True)
    ]
    for one in moved or [{}]:
        for values in product(*grid.over.values()):
            yield copy.deepcopy({**one, **dict(zip(grid.over, values, strict=True))})


def _varied(base: Recipe, fields: Mapping[str, JsonValue]) -> Recipe:
    """The recipe with other values at some paths.

    Raises:
        RecipeError: a path leads nowhere, or a value is wrong there.
    """
    document = copy.deepcopy(base.document())
    for path, value in fields.items():
        *parents, last = path.split(".")
        at: Any = document
        for part in parents:
            at = _below(at, part, path)
        if isinstance(at, list):
            raise RecipeError(f"sweep: path {path!r} names a whole stage; name a setting of it")
        if not isinstance(at, dict):
            raise RecipeError(f"sweep: the recipe has nothing below {'.'.join(parents)!r}")
        at[last] = copy.deepcopy(value)
    shown = ", ".join(f"{path} {value}" for path, value in fields.items())
    try:
        return parse_recipe(document)
    except RecipeError as error:
        raise RecipeError(f"sweep: {base.metadata.name} with {shown}: {error}") from None


def _below(at: Any, part: str, path: str) -> Any:
    if isinstance(at, list) and part.isdecimal() and int(part) < len(at):
        return at[int(part)]
    if isinstance(at, dict) and part in at:
        at[part] = {} if at[part] is None else at[part]  # a target where there was none
        return at[part]
    raise RecipeError(f"sweep: the recipe has nothing at {path!r} ({part!r} is not there)")
