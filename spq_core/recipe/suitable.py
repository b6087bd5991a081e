"""Whether a recipe fits a model, before any weight is read. Free of torch."""

from collections.abc import Iterable, Mapping
from typing import Any

from spq_core.errors import RecipeError, UnsupportedModelError
from spq_core.formats.profiles.registry import profile_named
from spq_core.models.family import Family
from spq_core.models.shapes import ModelShapes
from spq_core.recipe.document import Recipe


def refuse_family(recipe: Recipe, family: Family) -> None:
    """Refuse what no model of a family can become.

    Raises:
        UnsupportedModelError: a stage does not know such layers, or its matrices are stored transposed and the
            profile does not hold such.
    """
    profile = profile_named(recipe.profile)
    if family.input_major and not profile.input_major:
        raise UnsupportedModelError(
            f"profile {profile.name}: {family.name} models store their matrices transposed, which "
            f"{profile.format_name} does not know; use profile compact"
        )
    if family.experts and not profile.experts:
        raise UnsupportedModelError(
            f"profile {profile.name}: {profile.format_name} names the matrices of experts otherwise than they are held "
            "here; use profile compact"
        )
    for stage in recipe.stages:
        if error := stage.family_error(family):
            raise UnsupportedModelError(error)


def refuse_config(recipe: Recipe, text_config: Mapping[str, Any], *, has_towers: bool) -> None:
    """Refuse what readers of the artifact could not run.

    Args:
        text_config: what config.json says of the part that reads and writes text.
        has_towers: whether there are parts for other inputs.

    Raises:
        UnsupportedModelError: with their reason.
    """
    profile = profile_named(recipe.profile)
    objection = profile.refused(text_config)
    if has_towers and not profile.towers:
        objection = f"models with towers for other inputs than text are more than one file in {profile.format_name}"
    if objection:
        raise UnsupportedModelError(f"profile {profile.name}: {objection}; use profile compact")


def require_suitable(recipe: Recipe, shapes: ModelShapes) -> None:
    """Refuse what a model cannot become.

    Raises:
        UnsupportedModelError: see `refuse_family` and `refuse_config`.
        RecipeError: a stage does not fit the model's matrices.
    """
    refuse_family(recipe, shapes.family)
    refuse_config(recipe, shapes.text_config, has_towers=shapes.has_towers)
    for stage in recipe.stages:
        if error := stage.shapes_error(shapes, profile_named(recipe.profile)):
            raise RecipeError(error)


def require_gated_tasks(recipe: Recipe, tasks: Iterable[str]) -> None:
    """Refuse limits of tasks that nobody will measure.

    Raises:
        RecipeError: a gate names one.
    """
    missing = sorted(recipe.gates.tasks - set(tasks))
    if missing:
        raise RecipeError(
            f"a gate limits {missing[0]}, which is not among evaluation.tasks; add it there"
        )
