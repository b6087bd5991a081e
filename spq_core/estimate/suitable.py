"""Whether a recipe fits a model, from its headers alone. Free of torch."""

from spq_core.errors import RecipeError
from spq_core.estimate.shapes import ModelShapes
from spq_core.models.suitable import refuse_family
from spq_core.recipe.document import Recipe
from spq_core.recipe.settings import QuantizeStage


def require_suitable(recipe: Recipe, shapes: ModelShapes) -> None:
    """Refuse what a model cannot become.

    Raises:
        UnsupportedModelError: see `refuse_family`.
        RecipeError: groups of columns do not divide a matrix, and the artifact is to be portable.
    """
    refuse_family(recipe, shapes.family)
    if recipe.profile != "portable":
        return
    for stage in recipe.stages:
        size = stage.group_size if isinstance(stage, QuantizeStage) else None
        if size is None:
            continue
        for index, layer in enumerate(shapes.layers):
            name = next((name for name, part in sorted(layer.items()) if part.n_in % size), None)
            if name is not None:
                raise RecipeError(
                    f"profile portable: {name} of layer {index} has {layer[name].n_in} columns, which groups of "
                    f"{size} do not divide; choose another group_size"
                )
