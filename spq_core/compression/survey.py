"""What a walk over the source finds: curves of bits, directions, neurons, heads, and what each costs."""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from spq_core.formats.profiles.registry import profile_named
from spq_core.formats.slicing import float_weight, linear_at
from spq_core.methods.head_pruning.heads import groups_of, score_groups
from spq_core.methods.pruning.compensation import score_neurons
from spq_core.methods.pruning.levels import neuron_options
from spq_core.methods.quantization.gptq import hessian_factor
from spq_core.methods.quantization.levels import width_options
from spq_core.methods.svd.factorize import decompose, decompose_output
from spq_core.methods.svd.levels import rank_options
from spq_core.methods.svd.settings import SvdSettings
from spq_core.models.skeleton import Skeleton
from spq_core.planning.budget import tempered
from spq_core.planning.curve import Curve, curve_of
from spq_core.planning.levels import Options
from spq_core.planning.structure import PrunableUnits, SingularDirections
from spq_core.recipe.document import Recipe
from spq_core.streaming.inverse import DAMPING
from spq_core.streaming.sensitivity import LayerStatistics, MatrixStatistics
from spq_core.streaming.shrinkage import extra_damping


@dataclass(slots=True)
class Survey:
    """Notes what the recipe's open decisions depend on, layer by layer."""

    skeleton: Skeleton
    recipe: Recipe
    item_bytes: float = 2.0
    """Of what stays in floating point."""
    curves: dict[str, Curve] = field(default_factory=dict)
    row_weights: dict[str, Tensor] = field(default_factory=dict)
    """Of matrices that will be quantized by entropy."""
    output_weights: dict[str, Tensor] = field(default_factory=dict)
    """E[g_i²] of every matrix's outputs, for the stages that change shapes."""
    block_influence: dict[str, float] = field(default_factory=dict)
    directions: dict[str, SingularDirections] = field(default_factory=dict)
    neurons: dict[str, PrunableUnits] = field(default_factory=dict)
    heads: dict[str, PrunableUnits] = field(default_factory=dict)
    options: dict[str, Options] = field(default_factory=dict)
    """By part that gets one of a few levels: matrices, and for an MLP's neurons the matrix behind them."""
    last_steps: tuple[Tensor, Tensor] | None = None
    """Of the layer being entered: the last second moment and its column steps."""

    def visit(self, index: int, layer: nn.Module, found: LayerStatistics) -> None:
        """Enter one decoder layer."""
        family, path = self.skeleton.family, self.skeleton.layer_path(index)
        planned = {stage.planned for stage in self.recipe.stages}
        factorized = self._factorized()
        for name, statistics in found.matrices.items():
            full = f"{path}.{name}"
            weight = float_weight(linear_at(layer, name))
            self.block_influence[full] = found.influence[name]
            self.output_weights[full] = statistics.output_weights
            self.enter(
                full, weight, tempered(statistics.output_weights), statistics.inputs.second_moment
            )
            if name in factorized:
                self._enter_directions(full, weight, statistics)
        self.last_steps = None  # in a wide layer a second moment is hundreds of megabytes
        if "neurons" in planned and family.mlp_out in found.matrices:
            self._enter_neurons(path, layer, found.matrices[family.mlp_out])
        if "heads" in planned:
            self.heads[path] = self._heads(layer, found.matrices[family.attention[-1]])

    def _factorized(self) -> tuple[str, ...]:
        """Matrices of a layer whose ranks are open."""
        stages = (one for one in self.recipe.stages if isinstance(one, SvdSettings) and one.is_auto)
        return next((one.matrices(self.skeleton.family) for one in stages), ())

    @property
    def _by_rule(self) -> bool:
        """Whether ranks go by something else than expected loss."""
        target = self.recipe.target
        return target is not None and target.allocation != "loss" and not self.recipe.by_entropy

    @property
    def _by_levels(self) -> bool:
        """Whether ranks and numbers of neurons are some of a few."""
        return self.recipe.target is not None and self.recipe.target.is_of_levels

    @property
    def wants_tables(self) -> bool:
        """Whether embedding and head get widths of their own."""
        settings = self.recipe.quantize
        return (
            settings is not None
            and bool(settings.open_levels)
            and profile_named(self.recipe.profile).tables
        )

    def copied(self) -> "Survey":
        """The same findings; what is decided on the copy leaves these as they are."""
        return replace(
            self, curves=dict(self.curves), row_weights=dict(self.row_weights),
            output_weights=dict(self.output_weights), directions=dict(self.directions),
            neurons=dict(self.neurons), heads=dict(self.heads), options=dict(self.options),
        )  # fmt: skip

    def enter(self, name: str, weight: Tensor, weights: Tensor, second_moment: Tensor) -> None:
        """Measure a matrix's curve, if it will be quantized by entropy, or what each width costs it."""
        settings, target = self.recipe.quantize, self.recipe.target
        if settings is not None and settings.open_levels:
            profile = profile_named(self.recipe.profile)
            self.options[name] = width_options(weight, weights, second_moment, settings, profile)
            return
        if settings is None or target is None or not settings.by_entropy:
            return
        if self.last_steps is None or self.last_steps[0] is not second_moment:
            # matrices come group by group, and those of a group share their input
            self.last_steps = (
                second_moment,
                hessian_factor(second_moment, settings.damping).column_steps,
            )
        even = torch.ones_like(weights) * weights.mean()
        self.row_weights[name] = weights if target.allocation == "loss" else even
        self.curves[name] = curve_of(
            weight, self.row_weights[name], self.last_steps[1], settings.trellis_states
        )

    def _enter_directions(self, full: str, weight: Tensor, statistics: MatrixStatistics) -> None:
        if self._by_levels:
            counts, inputs = statistics.output_weights, statistics.inputs
            self.options[full] = rank_options(weight, counts, inputs, self.item_bytes)
        else:
            self.directions[full] = _directions(weight, statistics, by_rule=self._by_rule)

    def _enter_neurons(self, path: str, layer: nn.Module, statistics: MatrixStatistics) -> None:
        found = self._neurons(layer, statistics)
        self.neurons[path] = found
        if self._by_levels:
            name = self.skeleton.family.mlp_out
            self.options[f"{path}.{name}"] = neuron_options(
                float_weight(linear_at(layer, name)), statistics.output_weights, statistics.inputs,
                self.item_bytes * found.parameters,
            )  # fmt: skip

    def _neurons(self, layer: nn.Module, statistics: MatrixStatistics) -> PrunableUnits:
        family = self.skeleton.family
        weight = float_weight(linear_at(layer, family.mlp_out))
        losses = 0.5 * score_neurons("obs", weight, statistics.inputs, statistics.output_weights)
        widths = [linear_at(layer, name).in_features for name in family.mlp_in]
        parameters = weight.shape[0] + family.rows_per_neuron * sum(widths)
        return PrunableUnits(tuple(losses.tolist()), parameters, 0.0)

    def _heads(self, layer: nn.Module, statistics: MatrixStatistics) -> PrunableUnits:
        family = self.skeleton.family
        groups = groups_of(layer, family)
        weight = float_weight(linear_at(layer, family.attention[-1]))
        losses = 0.5 * score_groups(
            weight, statistics.inputs.second_moment, groups, statistics.output_weights
        )
        elements = sum(float_weight(linear_at(layer, name)).numel() for name in family.attention)
        return PrunableUnits(tuple(losses.tolist()), elements // groups, 0.0)

    def price_parts(self, distortions: dict[str, float] | None, stored_bytes: float) -> None:
        """Say what a parameter of each part takes: its bits at a distortion, or its stored bytes."""

        def bytes_of(name: str) -> float:
            if distortions is None:
                return stored_bytes
            curve = self.curves[name]
            return (curve.bytes_at(distortions[name]) - curve.overhead_bytes) / curve.elements

        family = self.skeleton.family
        for name, matrix in self.directions.items():
            self.directions[name] = replace(matrix, bytes_per_parameter=bytes_of(name))
        for units, behind in ((self.neurons, family.mlp_out), (self.heads, family.attention[-1])):
            for path, part in units.items():
                units[path] = replace(part, bytes_per_parameter=bytes_of(f"{path}.{behind}"))


def _directions(
    weight: Tensor, statistics: MatrixStatistics, *, by_rule: bool
) -> SingularDirections:
    """Loss of each output direction, every output counting as it does in the loss.

    Args:
        by_rule: energies are wanted, too.
    """
    weights = statistics.output_weights
    moments = statistics.inputs
    damping = DAMPING + extra_damping(moments)
    outputs = decompose_output(weight, moments.second_moment, weights, damping=damping)
    n_out, n_in = weight.shape
    squared = outputs.singular_values.square()[: min(n_out, n_in)]
    losses = 0.5 * float(weights.mean()) * squared  # spectra count outputs relative to their mean
    found = SingularDirections(tuple(losses.tolist()), n_out, n_in, 0.0)
    if not by_rule:
        return found
    plain = decompose_output(weight, moments.second_moment, damping=damping).singular_values
    return replace(
        found,
        weight_energy=tuple(decompose(weight).singular_values.square().tolist()),
        output_energy=tuple((moments.tokens * plain.square())[: min(n_out, n_in)].tolist()),
    )
