"""Factors of damped second moments, in the memory of one matrix.

For a wide layer such a matrix is half a gigabyte; how many of them exist at once is what bounds the
memory of a run, so every step here works in place.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from spq_core.errors import NumericalError
from spq_core.memory import return_freed_memory

DAMPING = 0.01
SMALLEST_ENERGY = 1e-3
"""Energy every input gets at least, as a share of the median: inputs that are never active."""
LARGEST_DAMPING = 1e6
LARGE_BYTES = 64 << 20
COLUMNS_AT_ONCE = ROWS_AT_ONCE = 512


def damp(exact: Float[Tensor, "n n"], damping: float = DAMPING) -> None:
    """Raise each diagonal element by a share of itself.

    GPTQ raises all elements by a share of their mean; a model with massive activations has a few
    inputs a million times as strong as the others, and their mean would drown all the rest.
    """
    energy = exact.diagonal()
    floor = SMALLEST_ENERGY * energy[energy > 0].median() if (energy > 0).any() else 1.0
    energy += damping * energy + floor


def damped_cholesky(
    second_moment: Float[Tensor, "n n"],
    order: Int64[Tensor, " k"],
    damping: float = DAMPING,
    *,
    mean: Float[Tensor, " n"] | None = None,
    dtype: torch.dtype = torch.float64,
) -> Float[Tensor, "k k"]:
    """Return L with L Lᵀ = the damped matrix; zeros above the diagonal.

    The damping grows tenfold until the factorisation succeeds.

    Args:
        order: the rows and columns to take, in that order.
        damping: share of each input's energy that is added to it.
        mean: of the inputs, if their covariance is meant.
        dtype: of the factor. In float32, half the memory and time, L Lᵀ differs from the matrix by at most
            k · 6e-8 of each input's energy (Higham 2002, theorem 10.3), so damping by 1% hides that up to
            100,000 inputs. Where it fails, float64 is tried before the damping grows.

    Raises:
        NumericalError: the second moment is not finite.
    """
    if not torch.isfinite(second_moment.diagonal()).all():
        raise NumericalError("calibration", "the second moment of an input")
    if len(order) ** 2 * dtype.itemsize > LARGE_BYTES:
        return_freed_memory()  # the largest allocation of a run comes next
    while True:
        exact = _reordered(second_moment, order, dtype)
        if mean is not None:
            some = mean[order].to(dtype)
            exact.addr_(some, some, alpha=-1)
        damp(exact, damping)
        lower = exact.mT  # symmetric: the same matrix, column by column
        failed = torch.empty((), dtype=torch.int32, device=lower.device)
        torch.linalg.cholesky_ex(lower, out=(lower, failed))
        if not failed:
            return lower
        if dtype != torch.float64:
            dtype = torch.float64
            continue
        damping *= 10
        if damping > LARGEST_DAMPING:
            raise NumericalError("calibration", "the second moment of an input")


def invert_triangle(lower: Float[Tensor, "n n"]) -> None:
    """Put L⁻¹ where L is, block of columns by block of columns from the last one on.

    With L = [[A, 0], [B, C]] the inverse is [[A⁻¹, 0], [−C⁻¹ B A⁻¹, C⁻¹]], and C⁻¹ is there already.
    """
    n = lower.shape[0]
    for start in reversed(range(0, n, COLUMNS_AT_ONCE)):
        stop = min(start + COLUMNS_AT_ONCE, n)
        here = slice(start, stop)
        identity = torch.eye(stop - start, dtype=lower.dtype, device=lower.device)
        inverse = torch.linalg.solve_triangular(lower[here, here], identity, upper=False)
        below = lower[stop:, here] @ -inverse
        lower[here, here] = inverse
        for row in range(stop, n, ROWS_AT_ONCE):
            end = min(row + ROWS_AT_ONCE, n)
            lower[row:end, here] = lower[row:end, stop:end] @ below[: end - stop]


def inverse_factor(
    second_moment: Float[Tensor, "n n"],
    kept: Int64[Tensor, " k"] | None = None,
    *,
    mean: Float[Tensor, " n"] | None = None,
    damping: float = DAMPING,
) -> Float[Tensor, "k k"]:
    """Return X with Xᵀ X = the inverse of the damped matrix, in float64.

    Args:
        kept: the rows and columns to take; all when left out. mean, damping: as for `damped_cholesky`.
    """
    if kept is None:
        kept = torch.arange(second_moment.shape[0], device=second_moment.device)
    lower = damped_cholesky(second_moment, kept, damping, mean=mean)
    invert_triangle(lower)
    return lower


def _reordered(
    second_moment: Float[Tensor, "n n"], order: Int64[Tensor, " k"], dtype: torch.dtype
) -> Float[Tensor, "k k"]:
    """Rows and columns in another order and dtype, without a copy between."""
    exact = second_moment.new_empty(len(order), len(order), dtype=dtype)
    for start in range(0, len(order), ROWS_AT_ONCE):
        rows = order[start : start + ROWS_AT_ONCE]
        exact[start : start + ROWS_AT_ONCE] = second_moment[rows][:, order]
    return exact
