"""One level for each part of a model: by expected loss, by a published path, or by trying whole models."""

from collections.abc import Mapping
from pathlib import Path

from jaxtyping import Int64
from torch import Tensor

from spq_core.compression.level_database import LevelDatabase
from spq_core.compression.survey import Survey
from spq_core.data.windows import evenly
from spq_core.models.checkpoint import Checkpoint
from spq_core.models.skeleton import Skeleton
from spq_core.planning.evolution import Effort, evolve, total_bytes
from spq_core.planning.levels import choose_levels, fit_path
from spq_core.planning.structure import Structure
from spq_core.planning.target import Target
from spq_core.progress import Phase, PhaseKind, Progress
from spq_core.recipe.document import Recipe

TRIED_TOKENS = 2048
"""Of the calibration text, that whole models are compared with the source on."""


def level_database(
    recipe: Recipe,
    skeleton: Skeleton,
    checkpoint: Checkpoint,
    windows: Int64[Tensor, "n length"],
    folder: Path,
) -> LevelDatabase | None:
    """Where to put all parts at all levels, if whole models are to be tried."""
    if not recipe.tries_models:
        return None
    rows = windows[evenly(len(windows), max(1, TRIED_TOKENS // windows.shape[1]))]
    return LevelDatabase(folder / "levels", skeleton, checkpoint, recipe.stages, rows)


def chosen_levels(
    survey: Survey,
    target: Target,
    wanted_bytes: float,
    fixed_bytes: float,
    database: LevelDatabase | None,
    progress: Progress,
) -> dict[str, int]:
    """A level for each part, by the target's rule.

    Raises:
        RecipeError: so few bytes cannot be reached.
    """
    if target.allocation == "fit":
        return fit_path(survey.options, wanted_bytes, fixed_bytes)
    levels = choose_levels(survey.options, wanted_bytes, fixed_bytes)
    if database is None:
        return levels
    return levels | _evolved(survey, levels, target, database, progress)


def matrices_of_levels(survey: Survey) -> set[str]:
    """All whose bytes the levels decide."""
    family, found = survey.skeleton.family, set(survey.options)
    for path in survey.neurons:
        found |= {f"{path}.{name}" for name in family.mlp}
    return found


def structure_of_levels(survey: Survey, levels: Mapping[str, int]) -> Structure:
    """Ranks of matrices that become pairs, and numbers of neurons."""
    behind = {f"{path}.{survey.skeleton.family.mlp_out}": path for path in survey.neurons}
    return Structure(
        ranks={
            name: level
            for name, level in levels.items()
            if name not in behind and level != max(survey.options[name].levels)
        },
        neurons={path: levels[name] for name, path in behind.items()},
    )


def _evolved(
    survey: Survey,
    levels: Mapping[str, int],
    target: Target,
    database: LevelDatabase,
    progress: Progress,
) -> dict[str, int]:
    """Levels of the layers' parts, in as many bytes as those they have; embedding and head keep theirs."""
    inside = f"{survey.skeleton.layers_path}."
    start = {name: level for name, level in levels.items() if name.startswith(inside)}
    options = {name: survey.options[name] for name in start}
    effort = Effort(target.generations, all_rows=len(database.rows))
    searching = Phase(PhaseKind.SENSITIVITY, "search", "levels tried")
    progress.begin(searching, target.generations, "generations")
    found = evolve(
        start, options, total_bytes(start, options), database.divergences, effort,
        lambda best: progress.advance(f"KL {best:.4f}"),
    )  # fmt: skip
    progress.record("evolution", {"kl": list(found.divergences)})
    database.remove()
    return found.levels
