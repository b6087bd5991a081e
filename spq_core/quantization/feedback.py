"""Round a matrix column by column, each column's error paid for by the columns still to come.

The optimal-brain-surgeon update in the order and form of GPTQ (arXiv:2210.17323): with
H = E[x xᵀ] and U the upper Cholesky factor of H⁻¹, rounding column j by an error e leaves the least
output error if e / U_jj · U_jk is taken off every later column k, and that least error is
(e / U_jj)². Columns may also be set to zero on the way (SparseGPT, arXiv:2301.00774): the same
update pays for the removal and for the rounding at once.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor

from spq_core.calibration.inverse import DAMPING, damped_cholesky, invert_triangle

BLOCK_COLUMNS = 128
INNER_COLUMNS = 32


class Cells(NamedTuple):
    """What the weights of some columns may become: integers from `low` to `high`, times a step."""

    steps: Float[Tensor, "columns out"]
    low: Float[Tensor, "columns out_or_1"]
    high: Float[Tensor, "columns out_or_1"]


CellsOf = Callable[[Int64[Tensor, " columns"]], Cells]
"""Indices of columns in the matrix → their cells."""


class Feedback(NamedTuple):
    """What a second moment says about the order and price of rounding.

    With J the reversal of that order and J H J = L Lᵀ, the factor U = J L⁻¹ J is upper triangular and
    H⁻¹ = Uᵀ U: one factorisation and one triangular inverse, both in the memory of H. Of a wide
    layer's moments only one float64 matrix exists, which is what bounds a run's memory.
    """

    order: Int64[Tensor, " n_in"]
    """Columns in the order they are rounded."""
    inverse: Float[Tensor, "n_in n_in"]
    """L⁻¹, float64."""

    @property
    def column_steps(self) -> Float[Tensor, " n_in"]:
        """U_jj by the matrix's own column index: the step at which each column costs the same."""
        return _by_column(self.order, self.inverse.diagonal().flip(0))

    def factor(self, start: int, stop: int) -> Float[Tensor, "rows columns"]:
        """Rows `start` to `stop` of U in float32, from column `start` on."""
        end = self.inverse.shape[0] - start
        begin = self.inverse.shape[0] - stop
        return self.inverse[begin:end, :end].flip(0, 1).float()


def feedback_of(
    second_moment: Float[Tensor, "n n"],
    damping: float = DAMPING,
    *,
    strongest_first: bool = True,
) -> Feedback:
    """Factorise a second moment.

    Args:
        damping, errors: as for `damped_cholesky`.
    """
    order = rounding_order(second_moment, strongest_first=strongest_first)
    lower = damped_cholesky(second_moment, order.flip(0), damping)
    invert_triangle(lower)
    return Feedback(order, lower)


@dataclass(slots=True)
class SharedFeedback:
    """Keeps the factors of one second moment: matrices that come one after another share their input."""

    second: Tensor | None = None
    factors: Feedback | None = None

    def of(self, second: Tensor, damping: float, *, strongest_first: bool) -> Feedback:
        """`feedback_of`, from before if this second moment was the last one."""
        if self.factors is None or self.second is not second:
            self.forget()  # before the next: each is as large as all else there is
            self.factors = feedback_of(second, damping, strongest_first=strongest_first)
            self.second = second
        return self.factors

    def forget(self) -> None:
        """Let go of the memory."""
        self.second = self.factors = None


def column_steps_of(
    second_moment: Float[Tensor, "n n"],
    damping: float = DAMPING,
    *,
    strongest_first: bool = True,
) -> Float[Tensor, " n"]:
    """`feedback_of(…).column_steps`, without the inverse: the reciprocals of L's diagonal."""
    order = rounding_order(second_moment, strongest_first=strongest_first)
    lower = damped_cholesky(second_moment, order.flip(0), damping)
    return _by_column(order, lower.diagonal().flip(0).reciprocal())


def rounding_order(
    second_moment: Float[Tensor, "n n"], *, strongest_first: bool
) -> Int64[Tensor, " n"]:
    """Columns in the order they are rounded; the strongest first is GPTQ's act-order."""
    energy = second_moment.diagonal()
    if strongest_first:
        return torch.argsort(energy, descending=True, stable=True)
    return torch.arange(energy.numel(), device=energy.device)


def _by_column(order: Tensor, steps: Tensor) -> Tensor:
    ordered = torch.empty_like(steps, dtype=torch.float32)
    ordered[order] = steps.float()
    return ordered


def round_with_feedback(
    weight: Float[Tensor, "out n_in"],
    feedback: Feedback,
    cells_of: CellsOf,
    *,
    sparsity: float = 0.0,
    dtype: torch.dtype = torch.int16,
) -> Int[Tensor, "out n_in"]:
    """Return the codes, columns in the matrix's own order.

    Rows do not depend on each other, so those of matrices that share an input may be given as one matrix.

    Args:
        weight: in any float dtype; one float32 copy of it is made.
        cells_of: called once per block of columns.
        sparsity: share of each block of columns that is set to zero first: the elements that cost
            least, w² / U_jj².
        dtype: of the codes.
    """
    # Transposed: a column of the matrix is then contiguous, and so are its products with later ones.
    remaining = weight.T[feedback.order].float()
    codes = torch.empty(remaining.shape, dtype=dtype, device=weight.device)
    for start in range(0, remaining.shape[0], BLOCK_COLUMNS):
        stop = min(start + BLOCK_COLUMNS, remaining.shape[0])
        columns = feedback.order[start:stop]
        factor = feedback.factor(start, stop)
        pivots = factor.diagonal()[:, None].clone()
        block, cells = remaining[start:stop], cells_of(columns)
        zeroed = _cheapest(block, pivots, sparsity)
        factor.div_(pivots)
        rounded, errors = _round_block(block, factor[:, : stop - start], cells, zeroed)
        codes[columns] = rounded.to(dtype)
        remaining[stop:].addmm_(factor[:, stop - start :].T, errors, alpha=-1)
    return codes.T.contiguous()


def _round_block(
    block: Float[Tensor, "columns out"],
    factor: Float[Tensor, "columns columns"],
    cells: Cells,
    zeroed: Bool[Tensor, "columns out"] | None,
) -> tuple[Float[Tensor, "columns out"], Float[Tensor, "columns out"]]:
    """Codes and errors of a block, which is overwritten; no number of a column is read back.

    Errors reach later columns one by one within `INNER_COLUMNS`, and beyond them in one product.

    Args:
        factor: U_jk / U_jj.
    """
    count = len(block)
    codes, errors = torch.empty_like(block), torch.empty_like(block)
    low, high, steps, values = (
        part.unbind() for part in (cells.low, cells.high, cells.steps, block)
    )
    masks = block.new_zeros(count, 0).unbind() if zeroed is None else zeroed.unbind()
    for start in range(0, count, INNER_COLUMNS):
        stop = min(start + INNER_COLUMNS, count)
        for j in range(start, stop):
            code = torch.div(values[j], steps[j], out=codes[j]).round_()
            code.clamp_(low[j], high[j])
            if zeroed is not None:
                code.masked_fill_(masks[j], 0.0)
            torch.addcmul(values[j], code, steps[j], value=-1, out=errors[j])
            block[j + 1 : stop].addr_(factor[j, j + 1 : stop], errors[j], alpha=-1)
        block[stop:].addmm_(factor[start:stop, stop:].T, errors[start:stop], alpha=-1)
    return codes, errors


def _cheapest(block: Tensor, pivots: Tensor, sparsity: float) -> Tensor | None:
    """Mask of the elements of a block (columns, out) to drop, or None."""
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
