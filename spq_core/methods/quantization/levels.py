"""What each width of codes would cost a matrix, in bytes and in expected loss."""

from jaxtyping import Float
from torch import Tensor

from spq_core.formats.profiles.profile import Profile
from spq_core.methods.quantization.gptq import hessian_factor, output_error
from spq_core.methods.quantization.grid import choose_grid, round_to_grid
from spq_core.methods.quantization.settings import QuantizeSettings
from spq_core.models.shapes import Matrix
from spq_core.planning.curve import sample_rows
from spq_core.planning.widths import WidthOptions

ITEM_BYTES = 2
"""Of a scale, where a profile does not say otherwise."""


def width_options(
    weight: Float[Tensor, "out n_in"],
    output_weights: Float[Tensor, " out"],
    second_moment: Float[Tensor, "n_in n_in"],
    settings: QuantizeSettings,
    profile: Profile,
) -> WidthOptions:
    """Round some rows at each width, as the stage will round all of them.

    Rows that `obc` would round by themselves are rounded in one order for all: with it they lose as much within some percent.

    Args:
        output_weights: E[g_i²], how much each output counts: an error ΔW costs ½ Σ_i E[g_i²] ΔW_i E[x xᵀ] ΔW_iᵀ nats per token.
    """
    picked = sample_rows(weight)
    rows, counts = weight[picked].float(), output_weights[picked].double()
    energy = second_moment.diagonal() if settings.scale_search else None
    factor = (
        hessian_factor(
            second_moment,
            settings.damping,
            act_order=settings.act_order or settings.method == "obc",
        )
        if settings.has_feedback
        else None
    )
    matrix = Matrix(weight.shape[0], weight.shape[1])
    sizes, losses = [], []
    for bits in settings.levels:
        grid = choose_grid(
            rows, bits, settings.group_size, symmetric=settings.symmetric, column_weights=energy
        )
        rounded = round_to_grid(rows, grid, factor, sparsity=settings.sparsity).dequantized()
        lost = output_error(rows, rounded, second_moment).double()
        losses.append(0.5 * float((counts * lost).mean()) * len(weight))
        sizes.append(settings.bytes_of(matrix, bits, ITEM_BYTES, profile))
    return WidthOptions(settings.levels, tuple(sizes), tuple(losses))
