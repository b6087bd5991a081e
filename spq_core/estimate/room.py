"""Whether there is disk enough for a run before it starts. Free of torch."""

import shutil
from pathlib import Path

from spq_core.errors import DiskSpaceError, SpqError
from spq_core.estimate.estimate import estimate, folder_shapes
from spq_core.evaluation.settings import EvaluationSettings
from spq_core.recipe.document import Recipe


def require_room(
    recipe: Recipe, source: Path, target: Path, evaluation: EvaluationSettings | None = None
) -> None:
    """Compare what a run will write with what is free.

    Args:
        source: the model folder. target: an existing folder on the disk that is written to.

    Raises:
        DiskSpaceError: there is less.
    """
    try:
        needed = estimate(recipe, folder_shapes(source), evaluation).scratch_bytes
    except SpqError:
        return  # a model may be compressed whose tensors have unusual names
    free = shutil.disk_usage(target).free
    if needed > free:
        raise DiskSpaceError(str(target), round(needed), free)
