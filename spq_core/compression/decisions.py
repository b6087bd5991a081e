"""Plan a run with a target: measure the source once, then decide what every matrix is worth.

Bits come from curves of bytes and loss (`planning.curve`), ranks and neurons from what leaving
them out would cost (`planning.structure`); one price joins them.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from spq_core.artifact.writer import overhead_bytes
from spq_core.compression.level_choice import (
    chosen_levels,
    level_database,
    matrices_of_levels,
    structure_of_levels,
)
from spq_core.compression.level_database import LevelDatabase
from spq_core.compression.survey import Survey
from spq_core.data.calibration import sensitivity_tokens
from spq_core.data.windows import evenly
from spq_core.errors import RecipeError, UnsupportedModelError
from spq_core.formats.profiles.format import BYTES_PER_MATRIX, FIXED_BYTES
from spq_core.formats.profiles.registry import profile_named
from spq_core.models.checkpoint import Checkpoint
from spq_core.models.skeleton import Skeleton
from spq_core.planning.budget import Budget, token_weights
from spq_core.planning.curve import Curve
from spq_core.planning.plan import Plan
from spq_core.planning.rank_rules import ranks_for
from spq_core.planning.rules import (
    bytes_for_loss,
    check_reachable,
    one_distortion,
    rule_named,
    search,
)
from spq_core.planning.structure import (
    PrunableUnits,
    SingularDirections,
    Structure,
    kept_at,
    kept_without,
    price_at,
    price_for_bytes,
    ranks_at,
    structure_bytes,
)
from spq_core.planning.target import Target
from spq_core.progress import Progress
from spq_core.recipe.document import Recipe
from spq_core.streaming.sensitivity import (
    EmbeddingStatistics,
    LayerStatistics,
    measure_sensitivity,
)


@dataclass(frozen=True, slots=True)
class Findings:
    """What a walk over the source found out; the same for every attempt at a target."""

    survey: Survey
    statistics: EmbeddingStatistics
    database: LevelDatabase | None = None
    """All parts at all levels, where whole models are to be tried."""


def look(
    recipe: Recipe,
    skeleton: Skeleton,
    checkpoint: Checkpoint,
    windows: Int64[Tensor, "n length"],
    scratch: Path,
    progress: Progress,
    *,
    item_bytes: int,
) -> Findings:
    """Measure what the source's loss depends on, in one walk forward and one back.

    Args:
        item_bytes: of what stays in floating point.

    Raises:
        UnsupportedModelError: the embedding is narrower than the layers, and bits are to be shared out.
    """
    survey = Survey(skeleton, recipe, item_bytes)
    picked = windows[
        evenly(len(windows), max(1, sensitivity_tokens(windows.numel()) // windows.shape[1]))
    ]
    database = level_database(recipe, skeleton, checkpoint, windows, scratch.parent)

    def visit(index: int, layer: nn.Module, found: LayerStatistics) -> None:
        survey.visit(index, layer, found)
        if database is not None:
            database.visit(index, layer, found)

    statistics = measure_sensitivity(skeleton, checkpoint, picked, scratch, progress, visit)
    if recipe.by_entropy or survey.wants_tables:
        if statistics.gradients.shape != statistics.head_inputs.shape:
            raise UnsupportedModelError(
                "the embedding is narrower than the layers; recipes with a target do not support that"
            )
        tokens = token_weights(statistics.probabilities, picked.numel())
        for name, second_moment in _matrices_of_rest(skeleton, recipe, statistics).items():
            stored = f"{name}.weight"
            survey.enter(name, checkpoint.read([stored])[stored], tokens, second_moment)
    return Findings(survey, statistics, database)


def make_plan(
    findings: Findings,
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    *,
    source_bytes: float,
    kl_inflation: float,
    progress: Progress,
) -> Plan:
    """Decide.

    Args:
        dtype: of what stays in floating point.
        kl_inflation: what to take the measured divergence over the expected loss to be.
        source_bytes: what `target.bytes_ratio` is a share of.

    Raises:
        RecipeError: the target is out of reach.
    """
    survey, recipe = findings.survey.copied(), findings.survey.recipe
    wanted_bytes = source_bytes
    if recipe.target is not None:
        stored = _stored_bytes(survey.skeleton, checkpoint, dtype)
        foreign = sum(size for name, size in stored.items() if survey.skeleton.is_foreign(name))
        wanted_bytes = recipe.target.bytes_of(source_bytes, foreign)
    structure = _with_fixed_shares(survey, Structure())
    if recipe.by_entropy:
        return _by_entropy(
            survey, checkpoint, dtype, findings.statistics, wanted_bytes, kl_inflation, structure
        )
    if recipe.target is not None and (recipe.quantize is not None or recipe.target.is_of_levels):
        structure = _by_levels(
            survey, recipe.target, checkpoint, dtype, wanted_bytes, findings.database, progress
        )
    elif recipe.target is not None:
        structure = _by_structure_alone(
            survey, recipe.target, checkpoint, dtype, wanted_bytes, structure
        )
    return Plan(structure, survey.output_weights, None)


def _with_fixed_shares(survey: Survey, structure: Structure) -> Structure:
    """Enter the neurons and heads of stages that say how many go, and leave to us which."""
    units = {"neurons": survey.neurons, "heads": survey.heads}
    for stage in survey.recipe.stages:
        if stage.planned in units and stage.removed_share is not None:
            kept = kept_without(units[stage.planned], stage.removed_share)
            structure = replace(structure, **{stage.planned: kept})
    return structure


@dataclass(frozen=True, slots=True)
class _Open:
    """The parts whose number the target decides."""

    directions: Mapping[str, SingularDirections]
    neurons: Mapping[str, PrunableUnits]
    heads: Mapping[str, PrunableUnits]
    min_factorized_share: float
    """Of matrices that become pairs."""

    @property
    def parts(self) -> list[SingularDirections | PrunableUnits]:
        return [*self.directions.values(), *self.neurons.values(), *self.heads.values()]

    def decide(self, structure: Structure, price: float) -> Structure:
        """Fill in what is worth its bytes at a price."""
        return replace(
            structure,
            ranks=ranks_at(self.directions, price, self.min_factorized_share),
            neurons=kept_at(self.neurons, price) or structure.neurons,
            heads=kept_at(self.heads, price) or structure.heads,
        )


def _left_open(survey: Survey) -> _Open:
    auto = {stage.planned: stage for stage in survey.recipe.stages if stage.is_auto}
    return _Open(
        survey.directions,
        survey.neurons if "neurons" in auto else {},
        survey.heads if "heads" in auto else {},
        getattr(auto.get("ranks"), "min_factorized_share", 0.0),
    )


def _by_entropy(
    survey: Survey,
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    statistics: EmbeddingStatistics,
    wanted_bytes: float,
    kl_inflation: float,
    structure: Structure,
) -> Plan:
    target, curves = survey.recipe.target, survey.curves
    settings = survey.recipe.quantize
    if target is None or settings is None:
        raise RecipeError("quantize with method entropy needs a target")
    fixed = _fixed_bytes(survey.skeleton, checkpoint, dtype, curves)
    rule = rule_named(target.allocation, survey.block_influence)
    if target.bytes_ratio is not None:
        wanted = wanted_bytes - fixed
    else:
        wanted = bytes_for_loss(rule, curves, (target.max_kl or 0.0) / kl_inflation)
    check_reachable(curves, wanted, fixed)
    if _left_open(survey).parts:
        distortions = search(one_distortion, curves, wanted)
        survey.price_parts(distortions, 0.0)
        price = price_at(next(iter(distortions.values())))
        structure = _left_open(survey).decide(structure, price)
    _shrink_curves(curves, survey, structure)
    return Plan(
        structure,
        survey.output_weights,
        Budget(
            curves, _apart(survey.row_weights), statistics, wanted,
            allocation=target.allocation, block_influence=survey.block_influence,
            dense_bytes=dtype.itemsize,
            keeps_dense=settings.keep_dense_with_spare_bytes,
        ),
    )  # fmt: skip


def _by_levels(
    survey: Survey,
    target: Target,
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    wanted_bytes: float,
    database: LevelDatabase | None,
    progress: Progress,
) -> Structure:
    """A width, a rank or a number of neurons for each part."""
    stored = _stored_bytes(survey.skeleton, checkpoint, dtype)
    planned = matrices_of_levels(survey)
    kept = sum(size for name, size in stored.items() if name.removesuffix(".weight") not in planned)
    profile = profile_named(survey.recipe.profile)
    fixed = kept + overhead_bytes(profile, checkpoint.folder, survey.skeleton, len(survey.options))
    wanted = wanted_bytes - fixed
    levels = chosen_levels(survey, target, wanted, fixed, database, progress)
    if survey.recipe.quantize is not None:
        return Structure(widths=levels)
    return structure_of_levels(survey, levels)


def _by_structure_alone(
    survey: Survey,
    target: Target,
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    wanted_bytes: float,
    structure: Structure,
) -> Structure:
    """Ranks, neurons and heads that make the stored bytes fit, with nothing quantized."""
    survey.price_parts(None, dtype.itemsize)
    left_open = _left_open(survey)
    if target.bytes_ratio is None or not left_open.parts:
        raise RecipeError("without quantization a target is a bytes_ratio, for stages set to auto")
    whole = structure_bytes(left_open.parts, 0.0)
    stored = sum(_stored_bytes(survey.skeleton, checkpoint, dtype).values())
    kept = stored - whole + FIXED_BYTES + BYTES_PER_MATRIX * len(survey.directions)
    wanted = wanted_bytes - kept
    least = structure_bytes(left_open.parts, 2.0**20)
    if wanted < least:
        raise RecipeError(
            f"target asks for {round(wanted + kept):,} bytes; with these stages "
            f"this model takes at least {round(least + kept):,}"
        )
    if target.allocation != "loss":
        ranks = ranks_for(
            target.allocation, survey.directions, wanted / dtype.itemsize, survey.block_influence
        )
        return replace(structure, ranks=ranks)
    return left_open.decide(structure, price_for_bytes(left_open.parts, wanted))


def _shrink_curves(curves: dict[str, Curve], survey: Survey, structure: Structure) -> None:
    """Count only the parameters that stay."""
    for name, rank in structure.ranks.items():
        part = survey.directions[name]
        curves[name] = replace(curves[name], elements=rank * (part.n_out + part.n_in))
    family = survey.skeleton.family
    for kept, units, members in (
        (structure.neurons, survey.neurons, family.mlp),
        (structure.heads, survey.heads, family.attention),
    ):
        for path, count in kept.items():
            share = count / len(units[path].losses)
            for name in members:
                curve = curves[f"{path}.{name}"]
                curves[f"{path}.{name}"] = replace(curve, elements=round(share * curve.elements))


def _matrices_of_rest(
    skeleton: Skeleton, recipe: Recipe, statistics: EmbeddingStatistics
) -> dict[str, Tensor]:
    """Head and embedding with the second moment their errors are weighed by, in the order of the run."""
    embedding = recipe.quantize is not None and recipe.quantize.embedding
    if skeleton.tied:
        both = statistics.head_inputs + statistics.gradients
        return {skeleton.embedding_path: both} if embedding else {}
    found = {skeleton.head_path: statistics.head_inputs}
    if embedding:
        found[skeleton.embedding_path] = statistics.gradients
    return found


def _fixed_bytes(
    skeleton: Skeleton, checkpoint: Checkpoint, dtype: torch.dtype, curves: dict[str, Curve]
) -> float:
    """Everything in the artifact that is not a quantized matrix."""
    quantized = {f"{name}.weight" for name in curves}
    stored = _stored_bytes(skeleton, checkpoint, dtype)
    kept = sum(n_bytes for name, n_bytes in stored.items() if name not in quantized)
    return kept + FIXED_BYTES + BYTES_PER_MATRIX * len(curves)


def _stored_bytes(skeleton: Skeleton, checkpoint: Checkpoint, dtype: torch.dtype) -> dict[str, int]:
    """Bytes of the tensors that an artifact would hold: files may have masks and repeated heads too."""
    names = set(skeleton.model.state_dict())
    if skeleton.tied:
        names.discard(f"{skeleton.head_path}.weight")
    shapes = checkpoint.shapes(names)
    return {name: math.prod(shape) * dtype.itemsize for name, shape in shapes.items()}


def _apart(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies that share no memory, as the state of a run stores them; embedding and head have one."""
    return {name: part.clone() for name, part in weights.items()}
