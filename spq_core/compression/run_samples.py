"""The text that a run looks at, as rows of tokens."""

from collections.abc import Mapping

from torch import Tensor

from spq_core.data.calibration import Layers
from spq_core.data.samples import CalibrationSamples, calibration_samples
from spq_core.data.texts import Text
from spq_core.data.training_rows import TrainingRows
from spq_core.errors import RecipeError
from spq_core.methods.training.rows import training_rows
from spq_core.models.clean_copy import SourceModel
from spq_core.recipe.document import Recipe


def samples_for(
    recipe: Recipe, source: SourceModel, text: Text | None, layers: Layers
) -> CalibrationSamples | None:
    """Calibration samples, if the recipe looks at any.

    Args:
        layers: of the model.

    Raises:
        RecipeError: there is no text, or it is padded where weights are fitted to it.
    """
    if not recipe.needs_calibration:
        return None
    if text is None:
        raise RecipeError(
            f"the recipe needs calibration text {recipe.calibration.dataset!r}; none was given"
        )
    samples = calibration_samples(recipe.calibration, text, source.folder, layers)
    if samples.pads and recipe.fits_to_inputs:
        raise RecipeError(
            f"calibration.form is lines, and {samples.pads} of {samples.rows.numel()} calibration tokens are "
            "padding, which this recipe would fit weights to; set calibration.form to windows"
        )
    return samples


def rows_to_train_on(
    recipe: Recipe, source: SourceModel, text: Text | None
) -> dict[str, TrainingRows]:
    """What each stage that trains does so on, by its type."""
    if text is None:
        return {}
    return {stage.type: training_rows(stage, text, source.folder) for stage in recipe.trained}


def rows_of(
    samples: CalibrationSamples | None, trained: Mapping[str, TrainingRows]
) -> list[Tensor]:
    """The tokens that a run looks at."""
    looked_at = [] if samples is None else [samples.rows]
    return looked_at + [one.rows for one in trained.values()]
