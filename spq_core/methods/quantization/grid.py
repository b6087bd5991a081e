"""Integer grids of 8, 4 or 3 bits: scale and zero point per row or per group of columns."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int16, UInt8
from torch import Tensor
from torch.nn import functional

from spq_core.methods.quantization.gptq import Cells, CellsOf, HessianFactor, gptq_round

SHRINKS = tuple(1 - step / 40 for step in range(17))
"""Shares of the full range that the scale search tries: 1 down to 0.6."""
SMALLEST_SCALE = 1e-6
"""Below this a scale would vanish in float16."""


class Grid(NamedTuple):
    """weight ≈ (codes − zero) · scale, one scale and zero per row and group of columns."""

    bits: int
    group_size: int
    """Columns that share a scale; the last group may be shorter."""
    scale: Float[Tensor, "out groups"]
    """Representable in float16, as it is stored, and in bfloat16, as other runtimes take it."""
    zero: UInt8[Tensor, "out groups"]

    @property
    def largest_code(self) -> int:
        """Codes go from 0 to this."""
        return (1 << self.bits) - 1


class GridWeight(NamedTuple):
    """Codes on a grid."""

    codes: UInt8[Tensor, "out n_in"]
    grid: Grid

    def dequantized(self) -> Float[Tensor, "out n_in"]:
        """The weight in float32."""
        n_in = self.codes.shape[1]
        scale, zero = (per_column(part, self.grid.group_size, n_in) for part in self.grid[2:])
        return (self.codes.float() - zero.float()) * scale


def per_column(values: Tensor, group_size: int, n_in: int) -> Tensor:
    """Repeat each group's value for its columns: (out, groups) → (out, n_in)."""
    return values.repeat_interleave(group_size, dim=1)[:, :n_in]


def choose_grid(
    weight: Float[Tensor, "out n_in"],
    bits: int,
    group_size: int | None = None,
    *,
    symmetric: bool = True,
    column_weights: Float[Tensor, " n_in"] | None = None,
) -> Grid:
    """Choose scales and zero points from the range of each group.

    With `column_weights` (E[x_j²]) each group tries the full range and smaller ones, and takes the
    one whose rounding error, weighted by them, is least: the output error of a diagonal second
    moment.
    """
    n_out, n_in = weight.shape
    size = min(group_size or n_in, n_in)
    padded = functional.pad(weight.float(), (0, -n_in % size)).view(n_out, -1, size)
    low, high = padded.amin(dim=2).clamp(max=0), padded.amax(dim=2).clamp(min=0)
    if symmetric:
        high = torch.maximum(-low, high)
        low = -high
    if column_weights is None:
        return Grid(bits, size, *_scale_and_zero(low, high, bits, symmetric=symmetric))
    importance = functional.pad(column_weights.float(), (0, -n_in % size)).view(1, -1, size)
    best: tuple[Tensor, Tensor] | None = None
    least = torch.full_like(low, torch.inf)
    for share in SHRINKS:
        scale, zero = _scale_and_zero(low * share, high * share, bits, symmetric=symmetric)
        codes = _codes(padded, scale[..., None], zero[..., None], bits)
        error = ((codes - zero[..., None]) * scale[..., None] - padded).square()
        loss = (error * importance).sum(dim=2)
        better = loss < least
        least = torch.where(better, loss, least)
        best = (
            (scale, zero)
            if best is None
            else (torch.where(better, scale, best[0]), torch.where(better, zero, best[1]))
        )
    assert best is not None  # noqa: S101 - SHRINKS is not empty
    return Grid(bits, size, *best)


def _scale_and_zero(
    low: Tensor, high: Tensor, bits: int, *, symmetric: bool
) -> tuple[Tensor, Tensor]:
    largest = (1 << bits) - 1
    # A symmetric grid leaves its lowest code unused, so that zero is a code.
    steps = largest - 1 if symmetric else largest
    scale = ((high - low) / steps).clamp(min=SMALLEST_SCALE).half().bfloat16().float()
    if symmetric:
        return scale, torch.full_like(scale, 1 << (bits - 1), dtype=torch.uint8)
    return scale, (-low / scale).round().clamp(0, largest).to(torch.uint8)


def _codes(values: Tensor, scale: Tensor, zero: Tensor, bits: int) -> Tensor:
    return ((values / scale).round() + zero).clamp(0, (1 << bits) - 1)


def round_to_grid(
    weight: Float[Tensor, "out n_in"],
    grid: Grid,
    feedback: HessianFactor | None = None,
    *,
    sparsity: float = 0.0,
) -> GridWeight:
    """Round to a grid: each weight to the nearest code, or with error feedback (GPTQ)."""
    n_in = weight.shape[1]
    if feedback is None:
        scale, zero = (per_column(part, grid.group_size, n_in) for part in grid[2:])
        return GridWeight(_codes(weight.float(), scale, zero, grid.bits).to(torch.uint8), grid)
    codes = gptq_round(weight, feedback, cells_of(grid), sparsity=sparsity)
    return from_zero(codes, grid)


def cells_of(grid: Grid) -> CellsOf:
    """What a grid allows the weights of some columns to become, with codes counted from zero."""
    scales, zeros = grid.scale.T.contiguous(), grid.zero.T.float().contiguous()

    def of_columns(columns: Tensor) -> Cells:
        groups = columns // grid.group_size
        zero = zeros[groups]
        return Cells(scales[groups], -zero, grid.largest_code - zero)

    return of_columns


def from_zero(codes: Int16[Tensor, "out n_in"], grid: Grid) -> GridWeight:
    """Codes as they are stored, of codes counted from zero."""
    zero = per_column(grid.zero, grid.group_size, codes.shape[1])
    return GridWeight((codes + zero).to(torch.uint8), grid)
