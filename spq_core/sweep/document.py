"""What a sweep tries and what it looks for: a document, validated. Free of torch."""

import json
import math
from collections.abc import Collection
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import Field, JsonValue, ValidationError, model_validator

from spq_core.documents import Document
from spq_core.errors import RecipeError
from spq_core.evaluation.metrics.registry import figure_names
from spq_core.evaluation.settings import TaskName

MOST_MEMBERS = 64
MOST_COMBINATIONS = 512
"""That are looked at; of those there may be as many members as are allowed."""
MOST_HALVINGS = 16
LEAST_STEP = 1e-8
BYTES = frozenset({"bytes_on_disk", "resident_bytes"})
SPEEDS = frozenset({"prefill_tokens_per_second", "decode_tokens_per_second"})
RequestedRecipe = Annotated[str, Field(max_length=64)] | dict[str, Any]
FieldPath = Annotated[str, Field(pattern=r"^[A-Za-z_]\w*(\.\w+)*$", max_length=128)]
DatasetName = Annotated[str, Field(min_length=1, max_length=64)]
Values = Annotated[list[JsonValue], Field(min_length=1, max_length=MOST_MEMBERS)]


def _require_figure(name: str) -> None:
    if name in SPEEDS:
        raise ValueError(
            f"{name} of members measured at different moments cannot be compared; `spq compare` takes speeds side by side"
        )
    if name not in figure_names() | BYTES | {"bytes_ratio", "retention", "theoretical_rate"}:
        raise ValueError(f"no figure is called {name!r}")


class Grid(Document):
    """Variants of one recipe."""

    base: RequestedRecipe
    """What it varies: a recipe by name, or a document."""
    over: dict[FieldPath, Values] = Field(default_factory=dict, max_length=8)
    """Path in the recipe → values; every combination is a member: `target.bytes_ratio`, `stages.0.bits`, ..."""
    zip: dict[FieldPath, Values] = Field(default_factory=dict, max_length=8)
    """Paths whose values move together: the first of each, the second of each, ..."""

    @model_validator(mode="after")
    def _of_one_length(self) -> Self:
        if len({len(values) for values in self.zip.values()}) > 1:
            raise ValueError("lists under zip must be of one length")
        if not self.over and not self.zip:
            raise ValueError("give paths under over or zip; a recipe alone goes under recipes")
        paths = [*self.over, *self.zip]
        for one in paths:
            if sum(other == one or other.startswith(f"{one}.") for other in paths) > 1:
                raise ValueError(f"path {one!r} is given twice, or holds another path")
        return self

    @property
    def count(self) -> int:
        """How many combinations there are."""
        moved = len(next(iter(self.zip.values()), [None]))
        return moved * math.prod(map(len, self.over.values()))


class Range(Document):
    """Limits of a figure."""

    min: Annotated[float, Field(allow_inf_nan=False)] | None = None
    """No less."""
    max: Annotated[float, Field(allow_inf_nan=False)] | None = None
    """No more."""

    @model_validator(mode="after")
    def _leave_something(self) -> Self:
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError("min is above max")
        return self


class Objective(Document):
    """Which member is best."""

    minimize: str | None = None
    """A figure of which less is better."""
    maximize: str | None = None
    """A figure of which more is better."""
    subject_to: dict[str, Range] = Field(default_factory=dict, max_length=8)
    """Figure → limits that a member must keep. `bytes_ratio` is the share of the source's bytes."""

    @model_validator(mode="after")
    def _of_one_figure(self) -> Self:
        if (self.minimize is None) == (self.maximize is None):
            raise ValueError("give either minimize or maximize")
        for name in (self.figure, *self.subject_to):
            _require_figure(name)
        return self

    @property
    def figure(self) -> str:
        """What is compared."""
        return self.minimize or self.maximize or ""


class EveryMember(Document):
    """All recipes, and every combination of every grid."""

    method: Literal["grid"] = "grid"
    """All of them."""


class RandomMembers(Document):
    """Some of all, drawn without order."""

    method: Literal["random"]
    """So many of all combinations."""
    samples: Annotated[int, Field(ge=1, le=MOST_MEMBERS)]
    """How many."""
    seed: Annotated[int, Field(ge=0, lt=1 << 31)] = 0
    """Of the draw."""


class Bisect(Document):
    """The smallest value of a field whose member keeps the objective's limits, by halving; the figures must change one way."""

    method: Literal["bisect"]
    """The smallest value whose member keeps the limits."""
    base: RequestedRecipe
    """What it varies: a recipe by name, or a document."""
    field: FieldPath
    """Path in the recipe: `target.bytes_ratio`."""
    low: Annotated[int, Field(strict=True)] | Annotated[float, Field(allow_inf_nan=False)]
    """The smallest value that is tried."""
    high: Annotated[int, Field(strict=True)] | Annotated[float, Field(allow_inf_nan=False)]
    """Two whole numbers: only whole numbers between them are tried."""
    tolerance: Annotated[float, Field(ge=1e-6, allow_inf_nan=False)]
    """How near to the true bound it goes."""

    @model_validator(mode="after")
    def _from_low_to_high(self) -> Self:
        if self.low >= self.high:
            raise ValueError("low must be below high")
        if self.tolerance < LEAST_STEP * max(abs(self.low), abs(self.high)):
            raise ValueError("tolerance is too small beside low and high")
        if math.log2((self.high - self.low) / self.tolerance) > MOST_HALVINGS:
            raise ValueError(f"that is more than {MOST_HALVINGS} halvings; take a larger tolerance")
        return self


Search = Annotated[EveryMember | RandomMembers | Bisect, Field(discriminator="method")]


class EarlyStop(Document):
    """When members need not be made; each that is not says why."""

    skip_infeasible_estimates: bool = True
    """Those that are too large by a limit of the objective, as far as the headers of the model tell."""
    stop_after_failures: Annotated[int, Field(ge=1)] | None = None
    """Failed members."""
    target: Annotated[float, Field(allow_inf_nan=False)] | None = None
    """Of the objective's figure: a member that keeps all limits and reaches it ends the sweep."""


class Finals(Document):
    """Winners are measured once more when all members have ended, one after the other."""

    members: Literal["best", "front"] = "best"
    """Which: the best, or all on the front."""
    throughput: bool = True
    """Take speeds, with those of the source and of plain INT8 in the same run."""
    confirm_on: Annotated[tuple[DatasetName, ...], Field(max_length=3)] = ()
    """Texts that chose nothing: the best of many on one text is better on that text than elsewhere."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """Windows of each text; as many as members have by default. Few for all and many for winners makes a long sweep short."""
    tasks: Annotated[tuple[TaskName, ...], Field(max_length=16)] = ()
    """Tasks that are put to winners alone, besides those of `evaluation.tasks`."""


class Sweep(Document):
    """A sweep."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9\-]{0,63}$")] = "sweep"
    """Lower-case letters, digits and dashes."""
    description: str = ""
    """For people."""
    recipes: Annotated[tuple[RequestedRecipe, ...], Field(max_length=MOST_MEMBERS)] = ()
    """Members: recipes by name, or documents."""
    grid: Annotated[tuple[Grid, ...], Field(max_length=16)] = ()
    """More members: variants of recipes."""
    objective: Objective = Objective(minimize="kl")
    """Which member is best."""
    search: Search = EveryMember()
    """Which of all members are made."""
    early_stop: EarlyStop = EarlyStop()
    """When no more are."""
    front: Annotated[tuple[str, ...], Field(min_length=2, max_length=4)] = ("bytes_on_disk", "kl")
    """Figures that the Pareto front is of."""
    keep: Literal["all", "front", "best", "none"] = "front"
    """Artifacts that stay."""
    finals: Finals | None = None
    """Winners are measured once more, if this is given."""

    @model_validator(mode="after")
    def _has_members(self) -> Self:
        bisects = isinstance(self.search, Bisect)
        if not self.recipes and not self.grid and not bisects:
            raise ValueError("give recipes, or a grid over one")
        if bisects and not self.objective.subject_to:
            raise ValueError("to bisect there must be limits to keep: give objective.subject_to")
        for name in self.front:
            _require_figure(name)
        if len(set(self.front)) < len(self.front):
            raise ValueError("front names a figure twice")
        count = len(self.recipes) + sum(grid.count for grid in self.grid)
        if count > MOST_COMBINATIONS:
            raise ValueError(f"that is {count:,} combinations; {MOST_COMBINATIONS} are looked at")
        return self

    @property
    def figures(self) -> frozenset[str]:
        """All that something is decided by."""
        return frozenset({*self.front, self.objective.figure, *self.objective.subject_to})


def parse_sweep(document: object) -> Sweep:
    """Validate a document.

    Raises:
        RecipeError: naming the part and what is wrong with it.
    """
    try:
        return Sweep.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise RecipeError(
            f"sweep: {where}: {first['msg']}" if where else f"sweep: {first['msg']}"
        ) from None


def require_measured(sweep: Sweep, tasks: Collection[str]) -> None:
    """Refuse a sweep that is decided by what nobody measures.

    Raises:
        RecipeError: it is.
    """
    if "retention" in sweep.figures and not tasks:
        raise RecipeError(
            "sweep: retention is measured by tasks; name some (evaluation.tasks, --tasks)"
        )


def named_sweep(name: str) -> Sweep:
    """A shipped sweep by name, or one in a YAML or JSON file.

    Raises:
        RecipeError: there is none, or it is malformed.
    """
    found = read_document(name)
    return shipped_sweep(name) if found is None else parse_sweep(found)


def read_document(name: str) -> Any:
    """What a YAML or JSON file holds, as JSON has it; None where the name is not a file's.

    Raises:
        RecipeError: it is not there, or holds something else.
    """
    path = Path(name)
    if path.suffix not in {".yaml", ".yml", ".json"}:
        return None
    if not path.is_file():
        raise RecipeError(f"sweep file {name} does not exist")
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
        return json.loads(json.dumps(document, allow_nan=False))
    except yaml.YAMLError as error:
        raise RecipeError(f"{name} is not YAML: {str(error).splitlines()[0]}") from None
    except (ValueError, TypeError, RecursionError) as error:
        raise RecipeError(f"{name} holds what JSON does not: {error}") from None


def shipped_sweep(name: str) -> Sweep:
    """A shipped sweep; opens no other file, whatever the name.

    Raises:
        RecipeError: there is none of that name.
    """
    shipped = _shipped()
    if name not in shipped:
        raise RecipeError(f"no sweep is called {name!r}; there are {', '.join(sorted(shipped))}")
    return parse_sweep(yaml.safe_load(shipped[name].read_text(encoding="utf-8")))


def shipped_sweeps() -> list[str]:
    """Their names, in order."""
    return sorted(_shipped())


def _shipped() -> dict[str, Any]:
    folder = files("spq_core.sweep") / "catalog"
    entries = (entry for entry in folder.iterdir() if entry.name.endswith(".yaml"))
    return {entry.name.removesuffix(".yaml"): entry for entry in entries}
