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
from jaxtyping import Float, Int64
from torch import Tensor

from spq_core.calibration.inverse import DAMPING, damped_cholesky, invert_triangle

BLOCK_COLUMNS = 128
RoundColumn = Callable[[int, Float[Tensor, " out"]], Float[Tensor, " out"]]
"""(column's index in the matrix, its values now) → the values it is stored with."""


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
    # Transposed: a column of the matrix is then contiguous, and so are its products with later ones.
    remaining = weight[:, feedback.order].T.contiguous().float()
    rounded = torch.empty_like(remaining)
    order = feedback.order.tolist()
    for start in range(0, remaining.shape[0], BLOCK_COLUMNS):
        stop = min(start + BLOCK_COLUMNS, remaining.shape[0])
        factor = feedback.factor(start, stop)
        block, local = remaining[start:stop], factor[:, : stop - start]
        errors = torch.empty_like(block)
        pivots = local.diagonal()
        zeroed = _cheapest(block, pivots, sparsity)
        for j in range(stop - start):
            values = block[j]
            kept = values if zeroed is None else values.masked_fill(zeroed[j], 0.0)
            stored = round_column(order[start + j], kept)
            rounded[start + j] = stored
            torch.sub(values, stored, out=errors[j])
            errors[j].div_(pivots[j])
            block[j + 1 :].addr_(local[j, j + 1 :], errors[j], alpha=-1)
        remaining[stop:].addmm_(factor[:, stop - start :].T, errors, alpha=-1)
    result = torch.empty_like(weight, dtype=torch.float32)
    result[:, feedback.order] = rounded.T
    return result


def _cheapest(block: Tensor, pivots: Tensor, sparsity: float) -> Tensor | None:
    """Mask of the elements of a block (columns, out) to drop, or None."""
    count = int(sparsity * block.numel())
    if count == 0:
        return None
    cost = (block / pivots[:, None]).square()
    return cost <= cost.flatten().kthvalue(count).values


def output_error(
    original: Float[Tensor, "out n_in"],
    changed: Float[Tensor, "out n_in"],
    second_moment: Float[Tensor, "n_in n_in"],
) -> Float[Tensor, " out"]:
    """E[(Δw_i · x)²] of each output row."""
    difference = changed.float() - original.float()
    return ((difference @ second_moment) * difference).sum(dim=1)
