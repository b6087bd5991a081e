"""Whether there is disk and memory enough for a run before it starts. Free of torch."""

import shutil
from pathlib import Path

from spq_core.errors import DiskSpaceError, MemoryNeededError, SpqError
from spq_core.estimate.estimate import estimate, folder_shapes
from spq_core.evaluation.settings import EvaluationSettings
from spq_core.memory import memory_limit
from spq_core.recipe.document import Recipe


def require_room(
    recipe: Recipe,
    source: Path,
    target: Path,
    evaluation: EvaluationSettings | None = None,
) -> None:
    """Compare what a run will write with what is free, and what it must hold with what it may.

    Args:
        source: the model folder. target: an existing folder on the disk that is written to.

    Raises:
        DiskSpaceError, MemoryNeededError: there is less.
    """
    try:
        expected = estimate(recipe, folder_shapes(source), evaluation)
    except SpqError:
        return  # a model may be compressed whose tensors have unusual names
    needed = expected.scratch_bytes
    limit = memory_limit()
    if limit is not None and expected.least_peak_bytes > limit:
        raise MemoryNeededError(round(expected.least_peak_bytes), limit)
    free = shutil.disk_usage(target).free
    if needed > free:
        raise DiskSpaceError(str(target), round(needed), free)
