"""One width of codes for each matrix: by expected loss, by a published path, or by trying whole models."""

from collections.abc import Mapping
from pathlib import Path

from jaxtyping import Int64
from torch import Tensor

from spq_core.compression.survey import Survey
from spq_core.compression.width_database import WidthDatabase
from spq_core.data.windows import evenly
from spq_core.models.checkpoint import Checkpoint
from spq_core.models.skeleton import Skeleton
from spq_core.planning.evolution import Effort, evolve, total_bytes
from spq_core.planning.target import Target
from spq_core.planning.widths import choose_widths, fit_path
from spq_core.progress import Phase, PhaseKind, Progress
from spq_core.recipe.document import Recipe

TRIED_TOKENS = 2048
"""Of the calibration text, that whole models are compared with the source on."""


def width_database(
    recipe: Recipe,
    skeleton: Skeleton,
    checkpoint: Checkpoint,
    windows: Int64[Tensor, "n length"],
    folder: Path,
) -> WidthDatabase | None:
    """Where to put all matrices at all widths, if whole models are to be tried."""
    if recipe.quantize is None or not recipe.tries_models:
        return None
    rows = windows[evenly(len(windows), max(1, TRIED_TOKENS // windows.shape[1]))]
    return WidthDatabase(folder / "widths", skeleton, checkpoint, recipe.quantize, rows)


def chosen_widths(
    survey: Survey,
    target: Target,
    wanted_bytes: float,
    fixed_bytes: float,
    database: WidthDatabase | None,
    progress: Progress,
) -> dict[str, int]:
    """A width for each matrix, by the target's rule.

    Raises:
        RecipeError: so few bytes cannot be reached.
    """
    if target.allocation == "fit":
        return fit_path(survey.widths, wanted_bytes, fixed_bytes)
    widths = choose_widths(survey.widths, wanted_bytes, fixed_bytes)
    if database is None:
        return widths
    return widths | _evolved(survey, widths, target, database, progress)


def _evolved(
    survey: Survey,
    widths: Mapping[str, int],
    target: Target,
    database: WidthDatabase,
    progress: Progress,
) -> dict[str, int]:
    """Widths of the layers' matrices, in as many bytes as those they have; embedding and head keep theirs."""
    inside = f"{survey.skeleton.layers_path}."
    start = {name: bits for name, bits in widths.items() if name.startswith(inside)}
    options = {name: survey.widths[name] for name in start}
    effort = Effort(target.generations, all_rows=len(database.rows))
    searching = Phase(PhaseKind.SENSITIVITY, "search", "widths tried")
    progress.begin(searching, target.generations, "generations")
    found = evolve(
        start, options, total_bytes(start, options), database.divergences, effort,
        lambda best: progress.advance(f"KL {best:.4f}"),
    )  # fmt: skip
    progress.record("evolution", {"kl": list(found.divergences)})
    database.remove()
    return found.widths
