"""Prune and round each row by itself: the exact solver of Optimal Brain Compression (arXiv:2208.11580).

With the inverse of H = E[x xᵀ] over the weights of a row that are still free, fixing weight j at q costs (w_j − q)² / [H⁻¹]_jj, and the other
free weights make up for it as well as they can. The solver fixes one weight at a time, and takes it out of H⁻¹. GPTQ and SparseGPT
(`gptq`) fix the columns of all rows in one order instead, with one factorisation for all.

The paper always fixes what costs least. For pruning that is right: what is not chosen stays. But in rounding all are fixed in the end,
those that cost most with nothing left to make up for them; where few inputs are strong, as in language models, that comes to more
error than one order for all rows. So here the weight that the others leave least freedom is rounded first (the least [H⁻¹]_jj), unless the
paper's order is asked for.

An inverse per row: n² · 8 bytes each, and n³ operations. So rows are taken some at a time, and wide matrices are left to `gptq`.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int16, Int64
from torch import Tensor

from spq_core.methods.quantization.gptq import Cells, CellsOf
from spq_core.streaming.inverse import DAMPING, inverse_factor

BYTES_AT_ONCE = 16 << 20
"""Of inverses: they stay in the cache."""
SHRUNK_BELOW = 0.8
"""Inverses lose the rows and columns of fixed weights when so large a share is left."""


def greedy_round(
    weight: Float[Tensor, "out n_in"],
    second_moment: Float[Tensor, "n_in n_in"],
    cells_of: CellsOf,
    *,
    sparsity: float = 0.0,
    cheapest_first: bool = False,
    damping: float = DAMPING,
) -> Int16[Tensor, "out n_in"]:
    """Codes of a matrix.

    Args:
        cells_of: as for `gptq_round`; is asked for all columns at once.
        sparsity: share of the matrix's weights that is set to zero first, those of any row that cost least.
        cheapest_first: the paper's order of rounding.
        damping: share of each input's energy that is added to it.

    Raises:
        NumericalError: the second moment is not finite.
    """
    factor = inverse_factor(second_moment, damping=damping)
    inverse = factor.T @ factor
    n_out, n_in = weight.shape
    cells = cells_of(torch.arange(n_in, device=weight.device))
    exact = weight.double()
    pruned = _pruned_per_row(exact, inverse, sparsity)
    codes = torch.empty(n_out, n_in, dtype=torch.int16, device=weight.device)
    for some in _batches(n_out, n_in):
        rows = _Rows.begin(exact[some], inverse)
        rows.prune(pruned[some])
        steps, low, high = _of_rows(cells, some, n_out)
        rows.round(steps, low, high, cheapest_first=cheapest_first)
        codes[some] = (rows.settled / steps).round().to(torch.int16)
    return codes


def prune_losses(
    weight: Float[Tensor, "out n_in"], inverse: Float[Tensor, "n_in n_in"]
) -> Float[Tensor, "out n_in"]:
    """What each further weight set to zero adds to a row's squared output error, in the order in which they go."""
    losses = torch.empty_like(weight, dtype=torch.float64)
    for some in _batches(*weight.shape):
        rows = _Rows.begin(weight[some].double(), inverse)
        losses[some] = rows.prune(torch.full((len(rows.settled),), weight.shape[1]))
    return losses


def _pruned_per_row(weight: Tensor, inverse: Tensor, sparsity: float) -> Int64[Tensor, " out"]:
    """How many weights of each row go, so that together they cost least.

    Each row's cheapest goes first, as far as the next costs less than another row's next.
    """
    count = int(sparsity * weight.numel())
    if count == 0:
        return torch.zeros(len(weight), dtype=torch.int64)
    traces = prune_losses(weight, inverse).cummax(dim=1).values
    ranked = traces.flatten().argsort(stable=True)[:count]
    return torch.bincount(ranked // weight.shape[1], minlength=len(weight))


def _batches(n_out: int, n_in: int) -> list[slice]:
    height = max(1, BYTES_AT_ONCE // (8 * n_in**2))
    return [slice(start, min(start + height, n_out)) for start in range(0, n_out, height)]


def _of_rows(cells: Cells, some: slice, n_out: int) -> tuple[Tensor, Tensor, Tensor]:
    """Steps, lowest and highest codes of some rows, (rows, n_in)."""
    steps, low, high = (part.T.double().expand(n_out, -1)[some] for part in cells)
    return steps, low, high


@dataclass(slots=True)
class _Rows:
    """Rows on their way; each has fixed as many weights as the others."""

    settled: Float[Tensor, "rows n_in"]
    """Values of weights that are fixed."""
    free: Float[Tensor, "rows k"]
    """Values of those that are not, among others that are no longer looked at."""
    columns: Int64[Tensor, "rows k"]
    """Where each is in its row."""
    inverse: Float[Tensor, "rows k k"]
    fixed: Bool[Tensor, "rows k"]

    @classmethod
    def begin(cls, weight: Tensor, inverse: Tensor) -> "_Rows":
        """With everything free."""
        rows, n_in = weight.shape
        columns = torch.arange(n_in, device=weight.device).expand(rows, -1).contiguous()
        copies = inverse.repeat(rows, 1, 1)  # a copy also of one
        return cls(
            weight.clone(),
            weight.clone(),
            columns,
            copies,
            torch.zeros_like(columns, dtype=torch.bool),
        )

    def prune(self, counts: Int64[Tensor, " rows"]) -> Float[Tensor, "rows steps"]:
        """Set so many weights of each row to zero; return what each step cost."""
        losses = []
        for step in range(int(counts.max())):
            costs = (self.free.square() / self._diagonal()).masked_fill_(self.fixed, torch.inf)
            chosen = costs.argmin(dim=1)
            going = (step < counts).to(self.free.device)
            losses.append(self._fix(chosen, torch.zeros_like(self.free[:, 0]), going))
        return torch.stack(losses, dim=1) if losses else self.free[:, :0]

    def round(self, steps: Tensor, low: Tensor, high: Tensor, *, cheapest_first: bool) -> None:
        """Round all that is free, each row in its own order.

        With `cheapest_first` a weight that is further from every code than rounding takes it (beyond the last code, or moved there by
        others) comes first all the same: what it costs only grows.
        """
        left = int((~self.fixed).sum(dim=1).max())
        for _ in range(left):
            step, least, most = (part.gather(1, self.columns) for part in (steps, low, high))
            nearest = torch.clamp((self.free / step).round(), least, most) * step
            chosen = self._cheapest(nearest, step) if cheapest_first else self._least_free()
            value = nearest.gather(1, chosen[:, None])[:, 0]
            self._fix(chosen, value, ~self.fixed.all(dim=1))
            self._shrink()

    def _least_free(self) -> Int64[Tensor, " rows"]:
        return self._diagonal().masked_fill(self.fixed, torch.inf).argmin(dim=1)

    def _cheapest(self, nearest: Tensor, step: Tensor) -> Int64[Tensor, " rows"]:
        errors = (self.free - nearest).square()
        costs = (errors / self._diagonal()).masked_fill_(self.fixed, torch.inf)
        outside = (errors > step.square() / 4 * (1 + 1e-9)) & ~self.fixed
        worst = errors.masked_fill(~outside, -1.0).argmax(dim=1)
        return torch.where(outside.any(dim=1), worst, costs.argmin(dim=1))

    def _diagonal(self) -> Tensor:
        return self.inverse.diagonal(dim1=1, dim2=2)

    def _fix(self, chosen: Tensor, value: Tensor, going: Tensor) -> Float[Tensor, " rows"]:
        """Fix a weight of each row that is `going`; the others stay as they are. Returns what it cost."""
        at = torch.arange(len(chosen), device=chosen.device)
        line = self.inverse[at, chosen]  # symmetric: a row is a column; a copy
        pivot = line.gather(1, chosen[:, None])
        error = torch.where(going, self.free[at, chosen] - value, 0.0)
        cost = error.square() / pivot[:, 0]
        self.free.addcmul_(line, (error / pivot[:, 0])[:, None], value=-1)
        scaled = torch.where(going[:, None], line / pivot, 0.0)
        self.inverse.addcmul_(line[:, :, None], scaled[:, None, :], value=-1)
        column = self.columns[at, chosen]
        self.settled[at, column] = torch.where(going, value, self.settled[at, column])
        self.fixed[at, chosen] |= going
        # What rounding errors leave of a fixed weight's row must not reach the others.
        self._diagonal()[self.fixed] = 1.0
        return cost

    def _shrink(self) -> None:
        """Leave out fixed weights, once that saves enough."""
        width = self.free.shape[1]
        left = int((~self.fixed).sum(dim=1).max())
        if left == 0 or left > SHRUNK_BELOW * width:
            return
        kept = self.fixed.to(torch.int8).argsort(dim=1, stable=True)[:, :left]
        self.free, self.columns, self.fixed = (
            part.gather(1, kept) for part in (self.free, self.columns, self.fixed)
        )
        some = self.inverse.gather(1, kept[:, :, None].expand(-1, -1, width))
        self.inverse = some.gather(2, kept[:, None, :].expand(-1, left, -1))
