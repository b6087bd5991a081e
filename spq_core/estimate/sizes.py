"""Bytes of an artifact before it is made.

What a recipe fixes (bits, groups, shares, a target) is counted exactly. What depends on the weights
or on text (ranks by variance, neurons by activation, bits by divergence) is taken from SmolLM2-135M,
and a range says how far another model may be from that.
"""

from dataclasses import dataclass, replace
from itertools import pairwise
from math import log2

from spq_core.errors import RecipeError
from spq_core.estimate.shapes import Matrix, ModelShapes
from spq_core.formats.profiles.names import BYTES_PER_MATRIX, FIXED_BYTES
from spq_core.methods.pruning.ratios import neurons_kept
from spq_core.recipe.document import Recipe
from spq_core.recipe.settings import (
    PruneHeadsStage,
    PruneStage,
    QuantizeStage,
    RecoverStage,
    ScaleMode,
    SvdStage,
)

PADDED_COLUMNS = 16
CODES_PER_PACK = 8
FLOAT_BYTES = 4
PACKED_SCALE_BYTES = 3
"""A float16 scale and a zero point."""
PORTABLE_WIDTH = 128
KEPT_BY_VARIANCE = ((0.0, 0.05), (0.84, 0.608), (0.90, 0.750), (0.96, 0.948), (1.0, 1.0))
"""Share of attention's weights that stays when matrices become pairs (SmolLM2-135M)."""
LEAST_KEPT = 0.5
"""Of what stays there, in a model whose spectra fall faster."""
MEAN_RATIO = 0.566
"""Mean of the paper's pruning ratios over their maximum (SmolLM2-135M)."""
FINEST_BITS = 7.0
"""Of a weight on the finest lattice whose codes are 8 bits wide (SmolLM2-135M: 6.9 to 7.2)."""
MOST_BITS = 7.3
BITS_BY_DIVERGENCE = ((3.5, 0.119), (4.45, 0.033), (5.6, 0.0084), (7.0, 0.0025))
"""Bits per weight and KL divergence (SmolLM2-135M off its 4-bit grid)."""
LEAST_BITS, LARGEST_BITS = 1.0, 8.0
BITS_OF_DOUBT = 1.0


@dataclass(frozen=True, slots=True)
class Range:
    """An expectation, and where the figure lies if the model is unlike those it was measured on."""

    low: float
    expected: float
    high: float

    def plus(self, other: "Range") -> "Range":
        """The range of a sum."""
        return Range(self.low + other.low, self.expected + other.expected, self.high + other.high)

    def times(self, factor: float) -> "Range":
        """The range of a multiple."""
        return Range(self.low * factor, self.expected * factor, self.high * factor)


def exactly(value: float) -> Range:
    """A figure without doubt."""
    return Range(value, value, value)


@dataclass(frozen=True, slots=True)
class _Kept:
    """Shares of weights that stages leave."""

    attention: Range = Range(1.0, 1.0, 1.0)
    mlp: Range = Range(1.0, 1.0, 1.0)


def artifact_bytes(recipe: Recipe, shapes: ModelShapes) -> Range:
    """Bytes of weight files, index, configuration and manifest."""
    if recipe.floats == "16-bit":
        shapes = shapes.in_sixteen_bits()
    target = recipe.target
    quantize = next((one for one in recipe.stages if isinstance(one, QuantizeStage)), None)
    if target is not None:
        wanted = (
            exactly(target.bytes_ratio * shapes.reference_bytes)
            if target.bytes_ratio is not None
            else _bytes_for_divergence(target.max_kl or 0.0, shapes)
        )
        if quantize is not None and quantize.method == "rate":
            _check_reachable(wanted.expected, shapes)
            if not quantize.leave_whole:
                wanted = _at_most(wanted, shapes)
        return wanted
    kept = _kept(recipe, shapes)
    family = shapes.family
    total = exactly(shapes.other_bytes + _overhead(shapes))
    for layer in shapes.layers:
        for name, matrix in layer.items():
            share = kept.attention if name in family.attention else kept.mlp
            total = total.plus(share.times(_layer_bytes(matrix, quantize, recipe, shapes)))
    total = total.plus(exactly(_tables_bytes(quantize, recipe, shapes)))
    return total.plus(exactly(_adapter_bytes(recipe, shapes)))


def _overhead(shapes: ModelShapes) -> int:
    count = sum(len(layer) for layer in shapes.layers) + 2
    return FIXED_BYTES + BYTES_PER_MATRIX * count


def _kept(recipe: Recipe, shapes: ModelShapes) -> _Kept:
    kept = _Kept()
    for stage in recipe.stages:
        match stage:
            case SvdStage() if not isinstance(stage.variance, str):
                kept = replace(kept, attention=_kept_by_variance(stage.variance))
            case PruneStage() if not isinstance(stage.max_ratio, str):
                kept = replace(kept, mlp=_kept_neurons(stage, recipe, shapes))
            case PruneHeadsStage() if not isinstance(stage.ratio, str):
                groups = len(shapes.layers) * shapes.kv_heads
                gone = min(round(stage.ratio * groups), groups - len(shapes.layers)) / groups
                kept = replace(kept, attention=kept.attention.times(1 - gone))
            case _:
                pass
    return kept


def _kept_by_variance(variance: float) -> Range:
    expected = _between(KEPT_BY_VARIANCE, variance)
    return Range(LEAST_KEPT * expected, expected, 1.0)


def _kept_neurons(stage: PruneStage, recipe: Recipe, shapes: ModelShapes) -> Range:
    most = float(stage.max_ratio)
    if stage.layer_ratios != "activation":
        width = next(iter(shapes.layers))[shapes.family.mlp_out].n_in
        multiple = PORTABLE_WIDTH if recipe.profile == "portable" else 1
        return exactly(neurons_kept(width, most, multiple) / width)
    mean = stage.min_ratio + MEAN_RATIO * (most - stage.min_ratio)
    return Range(1 - most, 1 - mean, 1 - stage.min_ratio)


def _layer_bytes(
    matrix: Matrix, stage: QuantizeStage | None, recipe: Recipe, shapes: ModelShapes
) -> float:
    if stage is None:
        return matrix.elements * shapes.item_bytes
    if stage.is_plain and recipe.profile == "compact":
        scales = 1 if stage.mode == ScaleMode.TENSOR else matrix.n_out
        return _padded(matrix.n_in, PADDED_COLUMNS) * matrix.n_out + FLOAT_BYTES * scales
    size = min(stage.group_size or matrix.n_in, matrix.n_in)
    scales = matrix.n_out * -(-matrix.n_in // size)
    codes = matrix.n_out * _padded(matrix.n_in, CODES_PER_PACK) * stage.bits / 8
    per_scale = PACKED_SCALE_BYTES if recipe.profile == "compact" else shapes.item_bytes
    return codes + per_scale * scales


def _tables_bytes(stage: QuantizeStage | None, recipe: Recipe, shapes: ModelShapes) -> float:
    """Embedding and head."""
    tables = [shapes.embedding] if shapes.head is None else [shapes.embedding, shapes.head]
    plain = sum(table.elements for table in tables) * shapes.item_bytes
    if stage is None or recipe.profile == "portable":
        return plain
    coded = [_table_bytes(table, stage, recipe, shapes) for table in tables]
    if stage.embedding:
        return sum(coded)
    # The embedding stays; a tied head gets codes of its own if rounding is plain, and stays with it if not.
    if shapes.head is not None:
        return shapes.embedding.elements * shapes.item_bytes + coded[1]
    return plain + (coded[0] if stage.is_plain else 0)


def _table_bytes(table: Matrix, stage: QuantizeStage, recipe: Recipe, shapes: ModelShapes) -> float:
    if stage.is_plain:
        return table.elements + FLOAT_BYTES * table.n_out
    return _layer_bytes(table, stage, recipe, shapes)


def _adapter_bytes(recipe: Recipe, shapes: ModelShapes) -> float:
    kept = [
        one for one in recipe.stages if isinstance(one, RecoverStage) and one.adapters == "kept"
    ]
    sides = sum(matrix.n_in + matrix.n_out for layer in shapes.layers for matrix in layer.values())
    return float(sum(stage.rank for stage in kept) * sides * shapes.item_bytes)


def _check_reachable(wanted: float, shapes: ModelShapes) -> None:
    least = shapes.elements * LEAST_BITS / 8 + shapes.other_bytes + _overhead(shapes)
    if wanted < 0.9 * least:
        raise RecipeError(
            f"target asks for {round(wanted):,} bytes; this model takes about {round(least):,} at least"
        )


def _at_most(wanted: Range, shapes: ModelShapes) -> Range:
    """No more than codes of the finest lattices take."""

    def finest(bits: float) -> float:
        return shapes.elements * bits / 8 + shapes.other_bytes + _overhead(shapes)

    return Range(
        min(wanted.low, finest(FINEST_BITS) * 0.95),
        min(wanted.expected, finest(FINEST_BITS)),
        min(wanted.high, finest(MOST_BITS)),
    )


def _bytes_for_divergence(divergence: float, shapes: ModelShapes) -> Range:
    points = sorted((log2(kl), bits) for bits, kl in BITS_BY_DIVERGENCE)
    bits = _between(tuple(points), log2(max(divergence, 1e-6)))
    fixed = shapes.other_bytes + _overhead(shapes)

    def total(count: float) -> float:
        return fixed + shapes.elements * min(max(count, LEAST_BITS), LARGEST_BITS) / 8

    return Range(total(bits - BITS_OF_DOUBT), total(bits), total(bits + BITS_OF_DOUBT))


def _between(points: tuple[tuple[float, float], ...], at: float) -> float:
    """Linear between points in rising order, constant outside."""
    if at <= points[0][0]:
        return points[0][1]
    for (left, low), (right, high) in pairwise(points):
        if at <= right:
            return low + (high - low) * (at - left) / (right - left)
    return points[-1][1]


def _padded(columns: int, multiple: int) -> int:
    return -(-columns // multiple) * multiple
