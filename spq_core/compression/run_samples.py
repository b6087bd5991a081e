"""The text that a run looks at, as rows of tokens."""

from torch import Tensor

from spq_core.data.samples import CalibrationSamples, calibration_samples
from spq_core.data.texts import Text
from spq_core.data.training_rows import TrainingRows
from spq_core.errors import RecipeError
from spq_core.methods.recovery.samples import recovery_samples
from spq_core.models.clean_copy import SourceModel
from spq_core.recipe.document import Recipe


def samples_for(
    recipe: Recipe, source: SourceModel, text: Text | None, widest: int
) -> CalibrationSamples | None:
    """Calibration samples, if the recipe looks at any.

    Args:
        widest: number of columns of the model's widest input.

    Raises:
        RecipeError: there is no text, or it is padded where weights are fitted to it.
    """
    if not recipe.needs_calibration:
        return None
    if text is None:
        raise RecipeError(
            f"the recipe needs calibration text {recipe.calibration.dataset!r}; none was given"
        )
    samples = calibration_samples(recipe.calibration, text, source.folder, widest)
    if samples.pads and recipe.fits_to_inputs:
        raise RecipeError(
            f"calibration.form is lines, and {samples.pads} of {samples.rows.numel()} calibration tokens are "
            "padding, which this recipe would fit weights to; set calibration.form to windows"
        )
    return samples


def recovery_rows(recipe: Recipe, source: SourceModel, text: Text | None) -> TrainingRows | None:
    """What a recovery trains on, if the recipe has one."""
    if recipe.recover is None or text is None:
        return None
    return recovery_samples(recipe.recover, text, source.folder)


def rows_of(*samples: CalibrationSamples | TrainingRows | None) -> list[Tensor]:
    """The tokens that a run looks at."""
    return [one.rows for one in samples if one is not None]
