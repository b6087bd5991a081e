"""Round a matrix column by column, each column's error paid for by the columns still to come.

The optimal-brain-surgeon update of GPTQ (arXiv:2210.17323), in the form that needs no inverse (LDLQ of
QuIP, arXiv:2307.13304, which proves both equal): with H = E[x xᵀ] = A D Aᵀ, A unit upper triangular and D
diagonal, an error Δ of the weights costs Σ_j D_j ((Δ A)_j)². So column j is rounded after
Σ_{i<j} Δ_i A_ij is added to it; its rounding error is then all it adds to the loss, times D_j. Columns may
also be set to zero on the way (SparseGPT, arXiv:2301.00774): the same update pays for the removal and for
the rounding at once.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor

from spq_core.streaming.inverse import DAMPING, damped_cholesky

BLOCK_COLUMNS = 128
INNER_COLUMNS = 32
LEAST_DAMPING = 1e-3
"""From this damping on, float32 is exact enough (see `damped_cholesky`)."""


class Cells(NamedTuple):
    """What the weights of some columns may become: integers from `low` to `high`, times a step."""

    steps: Float[Tensor, "columns out"]
    low: Float[Tensor, "columns out_or_1"]
    high: Float[Tensor, "columns out_or_1"]


CellsOf = Callable[[Int64[Tensor, " columns"]], Cells]
"""Indices of columns in the matrix → their cells."""
Choose = Callable[[int, Float[Tensor, " out"]], Float[Tensor, " out"]]
"""Index of a column in the matrix, and what is wanted of it in steps → its codes."""


class HessianFactor(NamedTuple):
    """What a second moment says about the order and price of rounding.

    With J the reversal of that order and J H J = L Lᵀ, J L J is upper triangular: A with its columns times
    the roots of D. One factorisation, in the memory of H: of a wide layer's moments no more may exist.
    """

    order: Int64[Tensor, " n_in"]
    """Columns in the order they are rounded."""
    lower: Float[Tensor, "n_in n_in"]
    """L."""

    @property
    def column_steps(self) -> Float[Tensor, " n_in"]:
        """D^(-1/2) by the matrix's own column index: the step at which each column costs the same."""
        return _by_column(self.order, self.lower.diagonal().flip(0).reciprocal())

    def columns(self, start: int, stop: int) -> Float[Tensor, "stop columns"]:
        """Columns `start` to `stop` of A times the roots of D, down to row `stop`, in float32."""
        end = self.lower.shape[0] - start
        begin = self.lower.shape[0] - stop
        return self.lower[begin:, begin:end].flip(0, 1).float()


def hessian_factor(
    second_moment: Float[Tensor, "n n"],
    damping: float = DAMPING,
    *,
    act_order: bool = True,
) -> HessianFactor:
    """Factorise a second moment.

    Args:
        damping, errors: as for `damped_cholesky`.
    """
    order = rounding_order(second_moment, act_order=act_order)
    dtype = torch.float32 if damping >= LEAST_DAMPING else torch.float64
    return HessianFactor(order, damped_cholesky(second_moment, order.flip(0), damping, dtype=dtype))


@dataclass(slots=True)
class SharedHessianFactor:
    """Keeps the factors of one second moment: matrices that come one after another share their input."""

    second_moment: Tensor | None = None
    factors: HessianFactor | None = None

    def of(self, second_moment: Tensor, damping: float, *, act_order: bool) -> HessianFactor:
        """`hessian_factor`, from before if this second moment was the last one."""
        if self.factors is None or self.second_moment is not second_moment:
            self.forget()  # before the next: each is as large as all else there is
            self.factors = hessian_factor(second_moment, damping, act_order=act_order)
            self.second_moment = second_moment
        return self.factors

    def forget(self) -> None:
        """Let go of the memory."""
        self.second_moment = self.factors = None


def rounding_order(second_moment: Float[Tensor, "n n"], *, act_order: bool) -> Int64[Tensor, " n"]:
    """Columns in the order they are rounded; the strongest first is GPTQ's act-order."""
    energy = second_moment.diagonal()
    if act_order:
        return torch.argsort(energy, descending=True, stable=True)
    return torch.arange(energy.numel(), device=energy.device)


def _by_column(order: Tensor, steps: Tensor) -> Tensor:
    ordered = torch.empty_like(steps, dtype=torch.float32)
    ordered[order] = steps.float()
    return ordered


def gptq_round(
    weight: Float[Tensor, "out n_in"],
    feedback: HessianFactor,
    cells_of: CellsOf,
    *,
    sparsity: float = 0.0,
    dtype: torch.dtype = torch.int16,
    choose: Choose | None = None,
) -> Int[Tensor, "out n_in"]:
    """Return the codes, columns in the matrix's own order.

    Rows do not depend on each other, so those of matrices that share an input may be given as one matrix.

    Args:
        weight: in any float dtype; one float32 copy of it is made.
        cells_of: called once per block of columns.
        sparsity: share of each block of columns that is set to zero first: the elements that cost
            least, w² D_j.
        dtype: of the codes.
        choose: how the codes of a column are found, where they depend on each other; by default each is the nearest.
    """
    # Transposed: a column of the matrix is then contiguous, and so are its products with later ones.
    # Rows of it are weights until they are rounded, and then their errors.
    rest = weight.T[feedback.order].float()
    codes = torch.empty(rest.shape, dtype=dtype, device=weight.device)
    for start in range(0, rest.shape[0], BLOCK_COLUMNS):
        stop = min(start + BLOCK_COLUMNS, rest.shape[0])
        columns = feedback.order[start:stop]
        factor = feedback.columns(start, stop)
        roots = factor[start:].diagonal().clone()
        factor.div_(roots)
        wanted = torch.addmm(rest[start:stop], factor[:start].T, rest[:start])
        zeroed = _cheapest(wanted, roots, sparsity)
        chooser = None if choose is None else _of_columns(choose, columns)
        rounded = _round_block(
            rest[start:stop], wanted, factor[start:], cells_of(columns), zeroed, chooser
        )
        codes[columns] = rounded.to(dtype)
    return codes.T.contiguous()


def _of_columns(choose: Choose, columns: Tensor) -> Choose:
    """The same by a column's place in its block."""
    names = columns.tolist()
    return lambda place, wanted: choose(names[place], wanted)


def _round_block(
    weights: Float[Tensor, "columns out"],
    wanted: Float[Tensor, "columns out"],
    factor: Float[Tensor, "columns columns"],
    cells: Cells,
    zeroed: Bool[Tensor, "columns out"] | None,
    choose: Choose | None,
) -> Float[Tensor, "columns out"]:
    """Codes of a block; no number of a column is read back.

    Errors reach later columns one by one within `INNER_COLUMNS`, and beyond them in one product.

    Args:
        weights: are replaced by their errors. wanted: the same with the errors of earlier blocks paid for;
            is overwritten. factor: the block's own part of A.
    """
    count = len(weights)
    codes = torch.empty_like(wanted)
    low, high, steps = (part.unbind() for part in (cells.low, cells.high, cells.steps))
    values, errors = wanted.unbind(), weights.unbind()
    masks = weights.new_zeros(count, 0).unbind() if zeroed is None else zeroed.unbind()
    for start in range(0, count, INNER_COLUMNS):
        stop = min(start + INNER_COLUMNS, count)
        for j in range(start, stop):
            code = torch.div(values[j], steps[j], out=codes[j])
            if choose is None:
                code.round_().clamp_(low[j], high[j])
            else:
                code.copy_(choose(j, code))
            if zeroed is not None:
                code.masked_fill_(masks[j], 0.0)
            errors[j].addcmul_(code, steps[j], value=-1)
            wanted[j + 1 : stop].addr_(factor[j, j + 1 : stop], errors[j])
        wanted[stop:].addmm_(factor[start:stop, stop:].T, weights[start:stop])
    return codes


def _cheapest(block: Tensor, roots: Tensor, sparsity: float) -> Tensor | None:
    """Mask of the elements of a block (columns, out) to drop, or None."""
    count = int(sparsity * block.numel())
    if count == 0:
        return None
    cost = (block * roots[:, None]).square()
    return cost <= cost.flatten().kthvalue(count).values


def output_error(
    original: Float[Tensor, "out n_in"],
    changed: Float[Tensor, "out n_in"],
    second_moment: Float[Tensor, "n_in n_in"],
) -> Float[Tensor, " out"]:
    """E[(Δw_i · x)²] of each output row."""
    difference = changed.float() - original.float()
    return ((difference @ second_moment) * difference).sum(dim=1)
