"""What each width of codes would cost a matrix, in bytes and in expected loss."""

from collections.abc import Iterator

from jaxtyping import Float
from torch import Tensor

from spq_core.formats.ggml.coding import widened
from spq_core.formats.profiles.profile import Profile
from spq_core.methods.quantization.block_grid import choose_blocks, round_to_blocks
from spq_core.methods.quantization.gptq import HessianFactor, hessian_factor, output_error
from spq_core.methods.quantization.grid import choose_grid, round_to_grid
from spq_core.methods.quantization.settings import QuantizeSettings
from spq_core.models.shapes import Matrix
from spq_core.planning.curve import sample_rows
from spq_core.planning.levels import Options

ITEM_BYTES = 2
"""Of a scale, where a profile does not say otherwise."""


def width_options(
    weight: Float[Tensor, "out n_in"],
    output_weights: Float[Tensor, " out"],
    second_moment: Float[Tensor, "n_in n_in"],
    settings: QuantizeSettings,
    profile: Profile,
) -> Options:
    """Round some rows at each width, as the stage will round all of them.

    Rows that `obc` would round by themselves are rounded in one order for all: with it they lose as much within some percent.

    Args:
        output_weights: E[g_i²], how much each output counts: an error ΔW costs ½ Σ_i E[g_i²] ΔW_i E[x xᵀ] ΔW_iᵀ nats per token.
    """
    picked = sample_rows(weight)
    rows, counts = weight[picked].float(), output_weights[picked].double()
    energy = second_moment.diagonal().double()
    matrix = Matrix(weight.shape[0], weight.shape[1])
    scale = 0.5 * len(weight)
    sizes, losses, distances = [], [], []
    for level, rounded in rounded_at(rows, second_moment, settings):
        lost = output_error(rows, rounded, second_moment).double()
        moved = (rows - rounded).double().square() @ energy
        losses.append(scale * float((counts * lost).mean()))
        distances.append(scale * float((counts * moved).mean()))
        sizes.append(settings.bytes_of(matrix, level, ITEM_BYTES, profile))
    length = scale * float((counts * (rows.double().square() @ energy)).mean())
    return Options(settings.open_levels, tuple(sizes), tuple(losses), tuple(distances), length)


def rounded_at(
    weight: Float[Tensor, "out n_in"],
    second_moment: Float[Tensor, "n_in n_in"],
    settings: QuantizeSettings,
) -> Iterator[tuple[int, Float[Tensor, "out n_in"]]]:
    """A matrix, or some of its rows, at each width or in each type."""
    energy = second_moment.diagonal() if settings.scale_search or settings.types else None
    factor = (
        hessian_factor(
            second_moment,
            settings.damping,
            act_order=settings.act_order or settings.method == "obc",
        )
        if settings.has_feedback
        else None
    )
    if settings.types:
        yield from _in_types(weight, energy, factor, settings)
    for bits in settings.levels:
        grid = choose_grid(
            weight, bits, settings.group_size, symmetric=settings.symmetric, column_weights=energy
        )
        yield bits, round_to_grid(weight, grid, factor, sparsity=settings.sparsity).dequantized()


def _in_types(
    weight: Tensor, energy: Tensor | None, factor: HessianFactor | None, settings: QuantizeSettings
) -> Iterator[tuple[int, Tensor]]:
    for level in settings.open_levels:
        kind = settings.type_of(weight.shape[1], level)
        if kind is None:
            yield level, weight
            continue
        blocks = round_to_blocks(weight, kind, choose_blocks(weight, kind, energy), factor)
        yield level, widened(kind, blocks)
