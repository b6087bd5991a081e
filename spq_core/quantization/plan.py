"""Plan a budget: measure the source once, and say what each matrix costs at each level."""

from pathlib import Path

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from spq_core.allocation.budget import Budget, tempered, token_weights
from spq_core.allocation.curve import Curve, curve_of
from spq_core.allocation.rules import bytes_for_loss, check_reachable, rule_named
from spq_core.calibration.sensitivity import (
    EmbeddingStatistics,
    LayerStatistics,
    measure_sensitivity,
)
from spq_core.layers.slicing import float_weight, linear_at
from spq_core.modeling.checkpoint import Checkpoint
from spq_core.modeling.skeleton import Skeleton
from spq_core.progress import Progress
from spq_core.quantization.feedback import feedback_of
from spq_core.recipe import QuantizeStage as QuantizeSettings
from spq_core.recipe import Target

SENSITIVITY_TOKENS = 4096
"""Calibration tokens for the pass forward and back; curves change little beyond."""
LOSS_EXCESS = 2.0
"""KL measured over KL expected: errors of one layer meet those of the next (measured: 1.0 to 2.4)."""
FIXED_BYTES = 8_000
BYTES_PER_MATRIX = 720
"""What configuration, index, manifest and shard headers take (measured on artifacts)."""


def plan_budget(
    skeleton: Skeleton,
    checkpoint: Checkpoint,
    windows: Int64[Tensor, "n length"],
    settings: QuantizeSettings,
    *,
    target: Target,
    source_bytes: int,
    scratch: Path,
    progress: Progress,
) -> Budget:
    """Measure sensitivities and curves of all matrices.

    Args:
        source_bytes: of the stored source, which `target.bytes_ratio` is a share of.

    Raises:
        RecipeError: the size is out of reach.
    """
    curves: dict[str, Curve] = {}
    row_weights: dict[str, Tensor] = {}
    turns: dict[str, float] = {}
    factorised: dict[int, Tensor] = {}

    def enter(name: str, weight: Tensor, weights: Tensor, second: Tensor) -> None:
        if id(second) not in factorised:
            factorised.clear()  # matrices come group by group
            factorised[id(second)] = feedback_of(second, settings.damping).column_steps
        steps = factorised[id(second)]
        row_weights[name] = (
            weights if target.allocation == "loss" else torch.ones_like(weights) * weights.mean()
        )
        curves[name] = curve_of(weight, row_weights[name], steps)

    def visit(index: int, layer: nn.Module, found: LayerStatistics) -> None:
        for name, statistics in found.matrices.items():
            full = f"{skeleton.layer_path(index)}.{name}"
            weight = float_weight(linear_at(layer, name))
            enter(full, weight, tempered(statistics.output_weights), statistics.inputs.second)
            turns[full] = found.turn

    enough = max(1, SENSITIVITY_TOKENS // windows.shape[1])
    picked = windows[torch.linspace(0, len(windows) - 1, min(enough, len(windows))).long()]
    statistics = measure_sensitivity(skeleton, checkpoint, picked, scratch, progress, visit)
    tokens = token_weights(statistics.probabilities, picked.numel())
    for name, second in _matrices_of_rest(skeleton, settings, statistics).items():
        stored = f"{name}.weight"
        enter(name, checkpoint.read([stored])[stored], tokens, second)
    fixed = _fixed_bytes(checkpoint, curves)
    if target.bytes_ratio is not None:
        wanted = target.bytes_ratio * source_bytes - fixed
    else:
        rule = rule_named(target.allocation, turns)
        wanted = bytes_for_loss(rule, curves, (target.max_kl or 0.0) / LOSS_EXCESS)
    check_reachable(curves, wanted, fixed)
    return Budget(
        curves, row_weights, statistics, wanted, allocation=target.allocation, turns=turns
    )


def _matrices_of_rest(
    skeleton: Skeleton, settings: QuantizeSettings, statistics: EmbeddingStatistics
) -> dict[str, Tensor]:
    """Head and embedding with the second moment their errors are weighed by, in the order of the run."""
    if skeleton.tied:
        both = statistics.head_inputs + statistics.gradients
        return {skeleton.embedding_path: both} if settings.embedding else {}
    found = {skeleton.head_path: statistics.head_inputs}
    if settings.embedding:
        found[skeleton.embedding_path] = statistics.gradients
    return found


def _fixed_bytes(checkpoint: Checkpoint, curves: dict[str, Curve]) -> float:
    """Everything in the artifact that is not a quantized matrix."""
    quantized = {checkpoint.stored_name(f"{name}.weight") for name in curves}
    kept = sum(
        header.n_bytes for name, header in checkpoint.tensors.items() if name not in quantized
    )
    return kept + FIXED_BYTES + BYTES_PER_MATRIX * len(curves)
