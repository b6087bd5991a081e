"""The stages of a job, planned from its request before it begins. Free of torch.

A run reports phases; a stage is what people follow: it has an id that stays the same from version to version, and may have
several phases (`compress` has one for each pass over the model).
"""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from pydantic import ValidationError

from spq_core.errors import RecipeError
from spq_core.estimate.stage_costs import stage_cost
from spq_core.evaluation.settings import EvaluationSettings
from spq_core.recipe.document import Recipe, parse_recipe

StageKind = Literal["prepare", "recipe", "check", "baseline", "measure", "publish"]
OTHER_MODELS = {"plain INT8/": "int8", "tuned source/": "tuned_source"}
PHASES = {
    "downloading": "download",
    "preflight": "preflight",
    "sensitivity": "sensitivity",
    "search": "sensitivity",
    "recovery": "recover",
    "load gate": "load_gate",
    "load": "speed",
    "throughput": "speed",
    "publishing": "publish",
}


class Stage(NamedTuple):
    """One of a job."""

    id: str
    title: str
    kind: StageKind
    cost: float = 1.0
    """Beside those of the same job."""
    phases: int = 1
    """That it is expected to have, one after the other."""


def planned_stages(
    recipe: Recipe,
    evaluation: EvaluationSettings,
    *,
    downloads: bool,
    publishes: bool,
    compresses: bool = True,
) -> tuple[Stage, ...]:
    """All stages that a job will have, in the order in which they begin.

    Args:
        compresses: False for a job that measures an artifact which is there.
    """
    names = ", ".join(stage.type for stage in recipe.stages if stage.type != "recover")
    trained = ", ".join(stage.type for stage in recipe.trained)
    wanted = (
        (downloads, Stage("download", "download the model", "prepare")),
        (compresses, Stage("preflight", "try the recipe on a toy model", "check")),
        (
            compresses and recipe.needs_sensitivity,
            Stage("sensitivity", "look at the source", "recipe"),
        ),
        (compresses and bool(names), Stage("compress", f"compress ({names})", "recipe")),
        (compresses and bool(recipe.trained), Stage("recover", f"train ({trained})", "recipe")),
        (compresses, Stage("load_gate", "load and compare in a fresh process", "check")),
        (evaluation.tuned_control and recipe.recover is not None, Stage("tuned_source", "tune the source", "baseline")),
        (evaluation.int8_baseline and not _is_int8(recipe), Stage("int8", "make plain INT8", "baseline")),
        (True, Stage("speed", "load and time" if evaluation.throughput else "load", "measure")),
        (True, Stage("measure", "measure on text", "measure")),
        (bool(evaluation.tasks), Stage("tasks", "put tasks", "measure")),
        (publishes, Stage("publish", "publish", "publish")),
    )  # fmt: skip
    planned = [stage for is_wanted, stage in wanted if is_wanted]
    models = 2 + sum(stage.kind == "baseline" for stage in planned)
    texts = len(evaluation.perplexity) + 1  # and the first tokens, as the paper has them
    phases = {"measure": models * texts, "tasks": models}
    return tuple(
        stage._replace(
            cost=stage_cost(stage.id, recipe, evaluation, models), phases=phases.get(stage.id, 1)
        )
        for stage in planned
    )


def requested_stages(recipe: Mapping[str, Any], request: Mapping[str, Any]) -> tuple[Stage, ...]:
    """The stages of a job, from its documents; none of documents that this version does not read: a plan is for people, and stops no job."""
    try:
        known = parse_recipe(recipe)
        evaluation = EvaluationSettings.model_validate(request["evaluation"])
        return _requested(known, request, evaluation)
    except (RecipeError, ValidationError, KeyError):
        return ()


def _requested(
    recipe: Recipe, request: Mapping[str, Any], evaluation: EvaluationSettings
) -> tuple[Stage, ...]:
    return planned_stages(
        recipe, evaluation, downloads=request["model"].get("repo_id") is not None,
        publishes=request.get("output") is not None, compresses=request.get("measure_of") is None,
    )  # fmt: skip


def stage_of(phase_id: str) -> str | None:
    """The stage that a phase belongs to; None if it says nothing about that."""
    for prefix, stage in OTHER_MODELS.items():
        if phase_id.startswith(prefix):
            return stage
    if phase_id.startswith(("pass-", "again")):
        return "compress"
    if phase_id.startswith("perplexity/"):
        return "measure"
    if phase_id.startswith("tasks/"):
        return "tasks"
    return PHASES.get(phase_id)


def _is_int8(recipe: Recipe) -> bool:
    """Whether the result is the baseline itself."""
    return (
        len(recipe.stages) == 1 and recipe.quantize is not None and recipe.metadata.name == "int8"
    )
