"""Plan a run with a target: measure the source once, then decide what every matrix is worth.

Bits come from curves of bytes and loss (`allocation.curve`), ranks and neurons from what leaving
them out would cost (`allocation.structure`); one price joins them.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from spq_core.allocation.budget import Budget, tempered, token_weights
from spq_core.allocation.curve import Curve, curve_of
from spq_core.allocation.rules import (
    bytes_for_loss,
    check_reachable,
    one_level,
    rule_named,
    search,
)
from spq_core.allocation.structure import (
    Directions,
    Neurons,
    Structure,
    decide,
    price_at,
    price_for_bytes,
    structure_bytes,
)
from spq_core.calibration.sensitivity import (
    EmbeddingStatistics,
    LayerStatistics,
    MatrixStatistics,
    measure_sensitivity,
)
from spq_core.errors import RecipeError, UnsupportedModelError
from spq_core.layers.slicing import float_weight, linear_at
from spq_core.modeling.checkpoint import Checkpoint
from spq_core.modeling.skeleton import Skeleton
from spq_core.progress import Progress
from spq_core.pruning.compensation import score_neurons
from spq_core.quantization.feedback import feedback_of
from spq_core.recipe import AUTO, PruneStage, QuantizeStage, Recipe, SvdStage, Target
from spq_core.svd.factorize import decompose_output

SENSITIVITY_TOKENS = 4096
"""Calibration tokens for the pass forward and back; curves change little beyond."""
LOSS_EXCESS = 2.0
"""KL measured over KL expected: errors of one layer meet those of the next (measured: 1.0 to 2.4)."""
FIXED_BYTES = 8_000
BYTES_PER_MATRIX = 720
"""What configuration, index, manifest and shard headers take (measured on artifacts)."""
NO_STRUCTURE = Structure({}, {})


@dataclass(frozen=True, slots=True)
class Plan:
    """What a target decides before the run."""

    structure: Structure
    budget: Budget | None
    """For a stage that quantizes by rate."""


@dataclass(slots=True)
class _Survey:
    """What a walk over the source finds."""

    skeleton: Skeleton
    recipe: Recipe
    target: Target
    curves: dict[str, Curve] = field(default_factory=dict)
    row_weights: dict[str, Tensor] = field(default_factory=dict)
    turns: dict[str, float] = field(default_factory=dict)
    directions: dict[str, Directions] = field(default_factory=dict)
    neurons: dict[str, Neurons] = field(default_factory=dict)
    factorised: tuple[Tensor, Tensor] | None = None
    """The last second moment and its column steps."""

    def visit(self, index: int, layer: nn.Module, found: LayerStatistics) -> None:
        """Enter one decoder layer."""
        family, path = self.skeleton.family, self.skeleton.layer_path(index)
        for name, statistics in found.matrices.items():
            full = f"{path}.{name}"
            weight = float_weight(linear_at(layer, name))
            self.turns[full] = found.turn
            self.enter(full, weight, tempered(statistics.output_weights), statistics.inputs.second)
            if name in family.attention and self._is_auto(SvdStage):
                self.directions[full] = _directions(weight, statistics)
        if self._is_auto(PruneStage):
            statistics = found.matrices[family.mlp_out]
            weight = float_weight(linear_at(layer, family.mlp_out))
            scaled = weight * statistics.output_weights.sqrt()[:, None]
            losses = 0.5 * score_neurons("obs", scaled, statistics.inputs)
            widths = [linear_at(layer, name).in_features for name in family.mlp_in]
            parameters = weight.shape[0] + family.rows_per_neuron * sum(widths)
            self.neurons[path] = Neurons(tuple(losses.tolist()), parameters, 0.0)

    def enter(self, name: str, weight: Tensor, weights: Tensor, second: Tensor) -> None:
        """Measure a matrix's curve, if it will be quantized by rate."""
        settings = rate_settings(self.recipe)
        if settings is None:
            return
        if self.factorised is None or self.factorised[0] is not second:
            # matrices come group by group, and those of a group share their input
            self.factorised = (second, feedback_of(second, settings.damping).column_steps)
        even = torch.ones_like(weights) * weights.mean()
        self.row_weights[name] = weights if self.target.allocation == "loss" else even
        self.curves[name] = curve_of(weight, self.row_weights[name], self.factorised[1])

    def _is_auto(self, kind: type) -> bool:
        return any(
            isinstance(stage, kind)
            and AUTO in (getattr(stage, "variance", 0), getattr(stage, "max_ratio", 0))
            for stage in self.recipe.stages
        )

    def price_parts(self, levels: dict[str, float] | None, stored_bytes: float) -> None:
        """Say what a parameter of each part takes: its bits at a level, or its stored bytes."""

        def bytes_of(name: str) -> float:
            if levels is None:
                return stored_bytes
            curve = self.curves[name]
            return (curve.bytes_at(levels[name]) - curve.overhead_bytes) / curve.elements

        for name, part in self.directions.items():
            self.directions[name] = replace(part, bytes_per_parameter=bytes_of(name))
        for path, neurons in self.neurons.items():
            name = f"{path}.{self.skeleton.family.mlp_out}"
            self.neurons[path] = replace(neurons, bytes_per_parameter=bytes_of(name))


def make_plan(
    recipe: Recipe,
    skeleton: Skeleton,
    checkpoint: Checkpoint,
    windows: Int64[Tensor, "n length"],
    *,
    source_bytes: int,
    scratch: Path,
    progress: Progress,
) -> Plan:
    """Measure the source and decide.

    Args:
        source_bytes: of the stored source, which `target.bytes_ratio` is a share of.

    Raises:
        RecipeError: the target is out of reach.
    """
    target = recipe.target
    if target is None:
        return Plan(NO_STRUCTURE, None)
    survey = _Survey(skeleton, recipe, target)
    picked = windows[_evenly(len(windows), max(1, SENSITIVITY_TOKENS // windows.shape[1]))]
    statistics = measure_sensitivity(skeleton, checkpoint, picked, scratch, progress, survey.visit)
    if rate_settings(recipe) is None:
        return Plan(_by_structure_alone(survey, checkpoint, source_bytes), None)
    if statistics.gradients.shape != statistics.head_inputs.shape:
        raise UnsupportedModelError(
            "the embedding is narrower than the layers; recipes with a target do not support that"
        )
    tokens = token_weights(statistics.probabilities, picked.numel())
    for name, second in _matrices_of_rest(skeleton, recipe, statistics).items():
        stored = f"{name}.weight"
        survey.enter(name, checkpoint.read([stored])[stored], tokens, second)
    return _by_rate(survey, checkpoint, statistics, source_bytes)


def _by_rate(
    survey: _Survey, checkpoint: Checkpoint, statistics: EmbeddingStatistics, source_bytes: int
) -> Plan:
    target, curves = survey.target, survey.curves
    fixed = _fixed_bytes(survey.skeleton, checkpoint, curves)
    rule = rule_named(target.allocation, survey.turns)
    if target.bytes_ratio is not None:
        wanted = target.bytes_ratio * source_bytes - fixed
    else:
        wanted = bytes_for_loss(rule, curves, (target.max_kl or 0.0) / LOSS_EXCESS)
    check_reachable(curves, wanted, fixed)
    structure = NO_STRUCTURE
    if survey.directions or survey.neurons:
        levels = search(one_level, curves, wanted)
        survey.price_parts(levels, 0.0)
        structure = decide(survey.directions, survey.neurons, price_at(next(iter(levels.values()))))
        _shrink_curves(curves, survey, structure)
    return Plan(
        structure,
        Budget(
            curves, survey.row_weights, statistics, wanted,
            allocation=target.allocation, turns=survey.turns,
            dense_bytes=checkpoint.dtype.itemsize,
        ),
    )  # fmt: skip


def _by_structure_alone(survey: _Survey, checkpoint: Checkpoint, source_bytes: int) -> Structure:
    """Ranks and neurons that make the stored bytes fit, with nothing quantized."""
    parts = (survey.directions, survey.neurons)
    if survey.target.bytes_ratio is None or not any(parts):
        raise RecipeError("without quantization a target is a bytes_ratio, for stages set to auto")
    survey.price_parts(None, checkpoint.dtype.itemsize)
    whole = structure_bytes(*parts, 0.0)
    stored = sum(_stored_bytes(survey.skeleton, checkpoint).values())
    kept = stored - whole + FIXED_BYTES + BYTES_PER_MATRIX * len(survey.directions)
    wanted = survey.target.bytes_ratio * source_bytes - kept
    price = price_for_bytes(*parts, wanted)
    least = structure_bytes(*parts, 2.0**20)
    if wanted < least:
        raise RecipeError(
            f"target asks for {round(wanted + kept):,} bytes; with these stages "
            f"this model takes at least {round(least + kept):,}"
        )
    return decide(*parts, price)


def _shrink_curves(curves: dict[str, Curve], survey: _Survey, structure: Structure) -> None:
    """Count only the parameters that stay."""
    for name, rank in structure.ranks.items():
        part = survey.directions[name]
        curves[name] = replace(curves[name], elements=rank * (part.n_out + part.n_in))
    family = survey.skeleton.family
    for path, kept in structure.neurons.items():
        share = kept / len(survey.neurons[path].losses)
        for name in (*family.mlp_in, family.mlp_out):
            curve = curves[f"{path}.{name}"]
            curves[f"{path}.{name}"] = replace(curve, elements=round(share * curve.elements))


def _directions(weight: Tensor, statistics: MatrixStatistics) -> Directions:
    """Loss of each output direction, every output counting as it does in the loss."""
    scaled = weight * statistics.output_weights.sqrt()[:, None]
    values = decompose_output(scaled, statistics.inputs.second).singular_values
    n_out, n_in = weight.shape
    losses = 0.5 * values.square()[: min(n_out, n_in)]
    return Directions(tuple(losses.tolist()), n_out, n_in, 0.0)


def _matrices_of_rest(
    skeleton: Skeleton, recipe: Recipe, statistics: EmbeddingStatistics
) -> dict[str, Tensor]:
    """Head and embedding with the second moment their errors are weighed by, in the order of the run."""
    settings = rate_settings(recipe)
    embedding = settings is not None and settings.embedding
    if skeleton.tied:
        both = statistics.head_inputs + statistics.gradients
        return {skeleton.embedding_path: both} if embedding else {}
    found = {skeleton.head_path: statistics.head_inputs}
    if embedding:
        found[skeleton.embedding_path] = statistics.gradients
    return found


def _fixed_bytes(skeleton: Skeleton, checkpoint: Checkpoint, curves: dict[str, Curve]) -> float:
    """Everything in the artifact that is not a quantized matrix."""
    quantized = {f"{name}.weight" for name in curves}
    stored = _stored_bytes(skeleton, checkpoint)
    kept = sum(n_bytes for name, n_bytes in stored.items() if name not in quantized)
    return kept + FIXED_BYTES + BYTES_PER_MATRIX * len(curves)


def _stored_bytes(skeleton: Skeleton, checkpoint: Checkpoint) -> dict[str, int]:
    """Bytes of the tensors that an artifact would hold: files may have masks and repeated heads too."""
    names = set(skeleton.model.state_dict())
    if skeleton.tied:
        names.discard(f"{skeleton.head_path}.weight")
    return {name: checkpoint.tensors[checkpoint.stored_name(name)].n_bytes for name in names}


def rate_settings(recipe: Recipe) -> QuantizeStage | None:
    """The recipe's stage that quantizes by rate, if it has one."""
    return next(
        (
            stage
            for stage in recipe.stages
            if isinstance(stage, QuantizeStage) and stage.method == "rate"
        ),
        None,
    )


def _evenly(total: int, count: int) -> Tensor:
    return torch.linspace(0, total - 1, min(count, total)).long()
