"""Round a matrix column by column, each column's error paid for by the columns still to come.

The optimal-brain-surgeon update in the order and form of GPTQ (arXiv:2210.17323): with
H = E[x xᵀ] and U the upper Cholesky factor of H⁻¹, rounding column j by an error e leaves the least
output error if e / U_jj · U_jk is taken off every later column k, and that least error is
(e / U_jj)². Columns may also be set to zero on the way (SparseGPT, arXiv:2301.00774): the same
update pays for the removal and for the rounding at once.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from spq_core.errors import NumericalError

BLOCK_COLUMNS = 128
SMALLEST_ENERGY = 1e-3
"""Energy every input gets at least, as a share of the median: inputs that are never active."""

LARGEST_DAMPING = 1e6
INVERTED_COLUMNS = ROWS_AT_ONCE = 512

RoundColumn = Callable[[int, Float[Tensor, " out"]], Float[Tensor, " out"]]
"""(column's index in the matrix, its values now) → the values it is stored with."""


class Feedback(NamedTuple):
    """What a second moment says about the order and price of rounding."""

    order: Int64[Tensor, " n_in"]
    """Columns in the order they are rounded."""
    factor: Float[Tensor, "n_in n_in"]
    """U in that order, float32."""

    @property
    def column_steps(self) -> Float[Tensor, " n_in"]:
        """U_jj by the matrix's own column index: the step at which each column costs the same."""
        steps = torch.empty_like(self.factor[0])
        steps[self.order] = self.factor.diagonal()
        return steps


def damped(second_moment: Float[Tensor, "n n"], damping: float) -> Float[Tensor, "n n"]:
    """Return the matrix in float64 with each diagonal element raised by a share of itself.

    GPTQ raises all elements by a share of their mean; a model with massive activations has a few
    inputs a million times as strong as the others, and their mean would drown all the rest.
    """
    return _raise_diagonal(second_moment.to(torch.float64, copy=True), damping)


def _raise_diagonal(exact: Tensor, damping: float) -> Tensor:
    energy = exact.diagonal()
    floor = SMALLEST_ENERGY * energy[energy > 0].median() if (energy > 0).any() else 1.0
    energy += damping * energy + floor
    return exact


def _reordered(
    second_moment: Float[Tensor, "n n"], order: Int64[Tensor, " n"]
) -> Float[Tensor, "n n"]:
    """The matrix in another order and in float64, without a float32 copy between."""
    exact = torch.empty_like(second_moment, dtype=torch.float64)
    for start in range(0, len(order), ROWS_AT_ONCE):
        rows = order[start : start + ROWS_AT_ONCE]
        exact[start : start + ROWS_AT_ONCE] = second_moment[rows][:, order]
    return exact


def feedback_of(
    second_moment: Float[Tensor, "n n"], damping: float = 0.01, *, strongest_first: bool = True
) -> Feedback:
    """Factorise a second moment; the damping grows tenfold until the factorisation succeeds.

    Raises:
        NumericalError: the second moment is not finite.
    """
    energy = second_moment.diagonal()
    if not torch.isfinite(energy).all():
        raise NumericalError("calibration", "the second moment of an input")
    order = (
        torch.argsort(energy, descending=True, stable=True)
        if strongest_first
        else torch.arange(energy.numel(), device=energy.device)
    )
    while True:
        exact = _raise_diagonal(_reordered(second_moment, order.flip(0)), damping)
        lower = exact.mT  # symmetric: the same matrix, column by column
        failed = torch.empty((), dtype=torch.int32, device=lower.device)
        torch.linalg.cholesky_ex(lower, out=(lower, failed))
        if not failed:
            break
        damping *= 10
        if damping > LARGEST_DAMPING:
            raise NumericalError("calibration", "the second moment of an input")
    return Feedback(order, _inverse_backwards(lower))


def _inverse_backwards(lower: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    """Return L⁻¹ with rows and columns in reverse, in float32.

    With J the reversal and J H J = L Lᵀ, this U = J L⁻¹ J is upper triangular and H⁻¹ = Uᵀ U: one
    factorisation and one triangular inverse, a few columns at a time. Of a wide layer's moments only
    one float64 matrix exists, which is what bounds a run's memory.
    """
    n = lower.shape[0]
    upper = torch.zeros(n, n, device=lower.device)
    for start in range(0, n, INVERTED_COLUMNS):
        columns = _columns_of_inverse(lower, start)
        stop = start + columns.shape[1]
        upper[: n - start, n - stop : n - start] = columns.flip(0, 1)
    return upper


def _columns_of_inverse(lower: Float[Tensor, "n n"], start: int) -> Float[Tensor, "rows width"]:
    """Some columns of L⁻¹ from `start` on, without the zeros above, by forward substitution.

    Block by block, because a triangular solve with part of a matrix copies that part first.
    """
    n = lower.shape[0]
    width = min(INVERTED_COLUMNS, n - start)
    columns = torch.zeros(n - start, width, dtype=lower.dtype, device=lower.device)
    columns[:width].fill_diagonal_(1.0)
    for row in range(start, n, INVERTED_COLUMNS):
        at = slice(row, row + INVERTED_COLUMNS)
        here = slice(row - start, row - start + INVERTED_COLUMNS)
        if row > start:
            columns[here] -= lower[at, start:row] @ columns[: row - start]
        columns[here] = torch.linalg.solve_triangular(lower[at, at], columns[here], upper=False)
    return columns


def round_with_feedback(
    weight: Float[Tensor, "out n_in"],
    feedback: Feedback,
    round_column: RoundColumn,
    *,
    sparsity: float = 0.0,
) -> Float[Tensor, "out n_in"]:
    """Return the rounded matrix, columns in the matrix's own order.

    Args:
        round_column: called once per column, in `feedback.order`.
        sparsity: share of each block of columns that is set to zero first: the elements that cost
            least, w² / U_jj².
    """
    remaining = weight[:, feedback.order].float()
    rounded = torch.empty_like(remaining)
    factor, order = feedback.factor, feedback.order.tolist()
    for start in range(0, remaining.shape[1], BLOCK_COLUMNS):
        stop = min(start + BLOCK_COLUMNS, remaining.shape[1])
        block, local = remaining[:, start:stop], factor[start:stop, start:stop]
        errors = torch.empty_like(block)
        zeroed = _cheapest(block, local.diagonal(), sparsity)
        for j in range(stop - start):
            values = block[:, j]
            kept = values if zeroed is None else values.masked_fill(zeroed[:, j], 0.0)
            stored = round_column(order[start + j], kept)
            rounded[:, start + j] = stored
            errors[:, j] = (values - stored) / local[j, j]
            block[:, j + 1 :].addr_(errors[:, j], local[j, j + 1 :], alpha=-1)
        remaining[:, stop:].addmm_(errors, factor[start:stop, stop:], alpha=-1)
    result = torch.empty_like(rounded)
    result[:, feedback.order] = rounded
    return result


def _cheapest(block: Tensor, pivots: Tensor, sparsity: float) -> Tensor | None:
    """Mask of the elements to drop, or None."""
    count = int(sparsity * block.numel())
    if count == 0:
        return None
    cost = (block / pivots).square()
    return cost <= cost.flatten().kthvalue(count).values


def output_error(
    original: Float[Tensor, "out n_in"],
    changed: Float[Tensor, "out n_in"],
    second_moment: Float[Tensor, "n_in n_in"],
) -> Float[Tensor, " out"]:
    """E[(Δw_i · x)²] of each output row."""
    difference = changed.float() - original.float()
    return ((difference @ second_moment) * difference).sum(dim=1)
