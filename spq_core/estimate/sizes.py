"""Bytes of an artifact before it is made.

What a recipe fixes (bits, groups, shares, a target) is counted exactly. What depends on the weights
or on text (ranks by variance, neurons by activation, bits by divergence) is taken from SmolLM2-135M,
and a range says how far another model may be from that.
"""

from collections.abc import Sequence
from math import log2

from spq_core.errors import RecipeError
from spq_core.estimated_range import Range, between, exactly
from spq_core.formats.profiles.format import BYTES_PER_MATRIX, FIXED_BYTES
from spq_core.formats.profiles.registry import profile_named
from spq_core.methods.settings import Kept
from spq_core.models.shapes import ModelShapes
from spq_core.recipe.document import Recipe

FINEST_BITS = 7.0
"""Of a weight on the finest lattice whose codes are 8 bits wide (SmolLM2-135M: 6.9 to 7.2)."""
MOST_BITS = 7.3
BITS_BY_DIVERGENCE = ((3.52, 0.062), (4.48, 0.021), (5.6, 0.0076), (7.0, 0.0025))
"""Bits per weight and KL divergence (SmolLM2-135M off its 4-bit grid)."""
LEAST_BITS, LARGEST_BITS = 1.0, 8.0
BITS_OF_DOUBT = 1.0


def artifact_bytes(recipe: Recipe, shapes: ModelShapes) -> Range:
    """Bytes of weight files, index, configuration and manifest."""
    if recipe.floats == "16-bit":
        shapes = shapes.in_sixteen_bits()
    target, quantize = recipe.target, recipe.quantize
    if target is not None:
        wanted = (
            exactly(target.bytes_of(shapes.reference_bytes, shapes.carried_bytes))
            if target.bytes_ratio is not None
            else _bytes_for_divergence(target.max_kl or 0.0, shapes)
        )
        if quantize is not None and quantize.by_entropy:
            _check_reachable(wanted.expected, shapes)
            if not quantize.keep_dense_with_spare_bytes:
                wanted = _at_most(wanted, shapes)
        return wanted
    kept, profile = _kept(recipe, shapes), profile_named(recipe.profile)
    total = exactly(shapes.other_bytes + _overhead(shapes))
    for layer in shapes.layers:
        for name, matrix in layer.items():
            share = kept.attention if name in shapes.family.attention else kept.mlp
            coded = [stage.matrix_bytes(matrix, shapes, profile) for stage in recipe.stages]
            plain = matrix.elements * shapes.item_bytes
            total = total.plus(share.times(_last_said(coded, plain)))
    head = 0 if shapes.head is None else shapes.head.elements
    plain = (shapes.embedding.elements + head) * shapes.item_bytes
    tables = _last_said([stage.tables_bytes(shapes, profile) for stage in recipe.stages], plain)
    return total.plus(exactly(tables + sum(stage.added_bytes(shapes) for stage in recipe.stages)))


def _last_said(coded: Sequence[float | None], plain: float) -> float:
    """Of the last stage that stores matrices in a form of its own."""
    return next((said for said in reversed(coded) if said is not None), plain)


def _overhead(shapes: ModelShapes) -> int:
    count = sum(len(layer) for layer in shapes.layers) + 2
    return FIXED_BYTES + BYTES_PER_MATRIX * count


def _kept(recipe: Recipe, shapes: ModelShapes) -> Kept:
    """Shares of weights that all stages together leave."""
    attention, mlp = exactly(1.0), exactly(1.0)
    for stage in recipe.stages:
        own = stage.kept(shapes, profile_named(recipe.profile))
        attention, mlp = attention.product(own.attention), mlp.product(own.mlp)
    return Kept(attention, mlp)


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
    bits = between(tuple(points), log2(max(divergence, 1e-6)))
    fixed = shapes.other_bytes + _overhead(shapes)

    def total(count: float) -> float:
        return fixed + shapes.elements * min(max(count, LEAST_BITS), LARGEST_BITS) / 8

    return Range(total(bits - BITS_OF_DOUBT), total(bits), total(bits + BITS_OF_DOUBT))
