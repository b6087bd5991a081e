"""From a recipe's settings to the stages that do the work."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from spq_core.compression.plan import Plan
from spq_core.errors import RecipeError
from spq_core.formats.profiles.compressed_tensors import WIDTH_MULTIPLE
from spq_core.methods.pruning.head_stage import PruneHeadsStage
from spq_core.methods.pruning.stage import PruneStage
from spq_core.methods.quantization.entropy_stage import EntropyStage
from spq_core.methods.quantization.grid_stage import GridStage
from spq_core.methods.quantization.stage import QuantizeStage
from spq_core.methods.recovery.samples import RecoverySamples
from spq_core.methods.recovery.stage import RecoverStage
from spq_core.methods.stage import Stage
from spq_core.methods.svd.stage import SvdStage
from spq_core.models.blocked import BlockedModel
from spq_core.models.skeleton import Skeleton
from spq_core.models.suitable import refuse_family
from spq_core.progress import Progress
from spq_core.recipe.document import Recipe
from spq_core.recipe.settings import PruneHeadsStage as PruneHeadsSettings
from spq_core.recipe.settings import PruneStage as PruneSettings
from spq_core.recipe.settings import QuantizeStage as QuantizeSettings
from spq_core.recipe.settings import RecoverStage as RecoverSettings
from spq_core.recipe.settings import SvdStage as SvdSettings


class Training(NamedTuple):
    """What a recovery needs besides its settings."""

    samples: RecoverySamples
    teacher: BlockedModel
    progress: Progress


def check_stages(recipe: Recipe, skeleton: Skeleton) -> None:
    """Refuse what a model cannot become, before anything is computed.

    Raises:
        UnsupportedModelError: its layers fix the number of heads, and the recipe prunes heads; or
            its matrices are stored transposed, and the artifact is to be portable.
    """
    refuse_family(recipe, skeleton.family)


def build_stages(
    recipe: Recipe,
    skeleton: Skeleton,
    dtype: torch.dtype,
    plan: Plan,
    training: Training | None,
) -> tuple[Stage, ...]:
    """Make the recipe's stages for one model.

    Args:
        dtype: of the source. training: needed by a recipe that recovers.
    """
    listeners: list[Callable[[str, Tensor], None]] = []

    def on_cut(name: str, kept: Tensor) -> None:
        for listener in listeners:
            listener(name, kept)

    if plan.budget is not None:
        listeners.append(plan.budget.keep_rows)
    stages: list[Stage] = []
    for settings in recipe.stages:
        if isinstance(settings, RecoverSettings):
            if training is None:
                raise RecipeError("a recipe with a recover stage needs text; none was given")
            stages.append(RecoverStage(settings, *training))
            continue
        portable = recipe.profile == "portable"
        stage = _build_stage(settings, skeleton, dtype, plan, on_cut, portable=portable)
        if isinstance(stage, SvdStage):
            listeners.append(stage.keep_rows)
        stages.append(stage)
    return tuple(stages)


def _build_stage(
    settings: SvdSettings | PruneSettings | PruneHeadsSettings | QuantizeSettings,
    skeleton: Skeleton,
    dtype: torch.dtype,
    plan: Plan,
    on_cut: Callable[[str, Tensor], None],
    *,
    portable: bool,
) -> Stage:
    family, structure = skeleton.family, plan.structure
    match settings:
        case SvdSettings():
            weights = plan.weights_of(family.attention) if settings.objective == "loss" else {}
            return SvdStage(settings, family, dict(structure.ranks), weights)
        case PruneSettings():
            weights = plan.weights_of((family.mlp_out,))
            multiple = WIDTH_MULTIPLE if portable else 1
            neurons = dict(structure.neurons)
            return PruneStage(settings, family, on_cut, neurons, weights, multiple)
        case PruneHeadsSettings():
            weights = plan.weights_of(family.attention[-1:])
            return PruneHeadsStage(settings, family, dict(structure.heads), weights, on_cut)
        case QuantizeSettings():
            parts = (
                settings, family, skeleton.head_path, skeleton.embedding_path, dtype,
            )  # fmt: skip
            if plan.budget is not None:
                return EntropyStage(*parts, plan.budget)
            if settings.is_plain and not portable:
                return QuantizeStage(*parts)
            return GridStage(*parts, layers_only=portable)
