"""Steps of a lattice: one byte a row and one a column, on a logarithmic grid."""

from typing import NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

LAST = 255
"""Grid points above the first."""
OCTAVE = 16
"""Grid points per doubling of a step."""


class Steps(NamedTuple):
    """Step of weight (i, j) = base · 2^((rows_i + columns_j) / 16)."""

    base: float
    rows: UInt8[Tensor, " out"]
    columns: UInt8[Tensor, " n_in"]

    @property
    def row_steps(self) -> Float[Tensor, " out"]:
        """Base · 2^(rows / 16), float32."""
        return self.base * powers(self.rows)

    @property
    def column_steps(self) -> Float[Tensor, " n_in"]:
        """2^(columns / 16), float32."""
        return powers(self.columns)


def powers(exponents: UInt8[Tensor, " n"]) -> Float[Tensor, " n"]:
    """2^(exponents / 16), equal on every machine: each value is computed once, in float64."""
    table = torch.tensor([2.0 ** (k / OCTAVE) for k in range(256)], dtype=torch.float64).float()
    return table.to(exponents.device)[exponents.long()]


def on_grid(steps: Float[Tensor, " n"]) -> tuple[float, UInt8[Tensor, " n"]]:
    """The smallest step, and each step's grid point above it.

    The grid spans 2^(255/16), some 60,000. Steps that are further apart than that have their smallest ones
    raised, which costs little: a large step that came out smaller would clip its codes.
    """
    smallest = max(float(steps.min()), float(steps.max()) / 2.0 ** (LAST / OCTAVE))
    return smallest, exponents_of(steps / smallest)


def exponents_of(ratios: Float[Tensor, " n"]) -> UInt8[Tensor, " n"]:
    """The nearest grid point of each ratio; ratios go from 1 to 2^(255/16)."""
    return (OCTAVE * ratios.log2()).round().clamp(0, LAST).to(torch.uint8)
