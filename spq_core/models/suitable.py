"""Whether a recipe fits a family of models. Free of torch."""

from spq_core.errors import UnsupportedModelError
from spq_core.models.family import Family
from spq_core.recipe.document import Recipe
from spq_core.recipe.settings import PruneHeadsStage


def refuse_family(recipe: Recipe, family: Family) -> None:
    """Refuse what no model of a family can become.

    Raises:
        UnsupportedModelError: its layers fix the number of heads, and the recipe prunes heads; or its matrices
            are stored transposed, and the artifact is to be portable.
    """
    if recipe.profile == "portable" and family.input_major:
        raise UnsupportedModelError(
            f"profile portable: {family.name} models store their matrices transposed, which compressed-tensors "
            "does not know; use profile compact"
        )
    prunes_heads = any(isinstance(stage, PruneHeadsStage) for stage in recipe.stages)
    if prunes_heads and not family.head_groups:
        raise UnsupportedModelError(
            f"prune-heads does not support {family.name} models, whose layers fix the number of heads; leave the "
            "stage out"
        )
