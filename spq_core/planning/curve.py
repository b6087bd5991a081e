"""What a matrix costs in bytes, and in expected loss, for each distortion of its lattice.

Measured by rounding a sample of the matrix's weights, without error feedback; feedback moves the
weights by less than their spread, so the entropy is that of the final codes within a few percent.
"""

import math
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from spq_core.formats.range_coded.tables import (
    EVEN,
    PER_OCTAVE,
    SPREADS,
    TOTAL,
    table_of,
    tables,
)
from spq_core.formats.range_coded.tables import FIRST_OCTAVE as FIRST_SPREAD
from spq_core.formats.range_coded.trellis import (
    ERRORS,
    MOST_OCTAVES_COARSER,
    SCALAR,
    SCALAR_ERROR,
    finer,
)

FIRST_OCTAVE = -60
DISTORTIONS = tuple(2.0**exponent for exponent in range(FIRST_OCTAVE, 41))
"""Distortions at which a curve is measured, an octave (half a bit) apart."""
SAMPLE_ROWS = 64
LARGEST_CODE = 127
HEADROOM = 110
"""Codes that original weights may reach; feedback adds to them."""
ROWS_LEFT_OUT = 0.1
SATURATED = 1e-3
"""Bits per weight that an octave must bring for a finer distortion to be tried."""
MISFIT = 0.02
"""Bits per code by which what is stored exceeds the entropy of normal weights of the same spread (measured)."""
LEAST_BITS = 0.02
SPREAD_FITS = 2
LEAST_SHARE = 1e-6
TRELLIS_EXCESS = 0.08
"""Bits per code above the rate-distortion bound along a trellis, where codes take a bit or more."""


@dataclass(frozen=True, slots=True)
class Curve:
    """Bits per weight, loss and relative error of one matrix over `DISTORTIONS`."""

    elements: int
    overhead_bytes: int
    """Steps and biases."""
    bits: tuple[float, ...]
    loss: tuple[float, ...]
    """Expected KL in nats per token; counts each weight's expected error, so it is a prediction."""
    relative_error: tuple[float, ...]
    """Of the output, squared."""

    def bytes_at(self, distortion: float) -> float:
        """Stored bytes at a distortion, between measured ones by interpolation in its logarithm."""
        return self.overhead_bytes + self.elements * _between(self.bits, distortion) / 8

    def loss_at(self, distortion: float) -> float:
        """Expected loss at a distortion."""
        return _between(self.loss, distortion)

    def distortion_with_bits(self, bits: float) -> float:
        """The distortion at which a weight takes `bits` bits."""
        return _inverse([-value for value in self.bits], -bits)

    def distortion_with_error(self, relative_error: float) -> float:
        """The distortion at which the squared relative output error is `relative_error`."""
        return _inverse(self.relative_error, relative_error)


def _between(values: tuple[float, ...], distortion: float) -> float:
    place = min(max(math.log2(distortion) - FIRST_OCTAVE, 0.0), len(values) - 1.0)
    before = min(int(place), len(values) - 2)
    return values[before] + (place - before) * (values[before + 1] - values[before])


def _inverse(rising: list[float] | tuple[float, ...], wanted: float) -> float:
    return float(2.0 ** np.interp(wanted, rising, np.log2(DISTORTIONS)))


def fitted(
    sizes: Float[Tensor, "rows n_in"],
    rows: Float[Tensor, " rows"],
    columns: Float[Tensor, " n_in"],
) -> Float[Tensor, " rows"]:
    """Row steps, enlarged where a weight would need a code beyond the headroom.

    Args:
        sizes: absolute weights. columns: steps that were fitted by `column_floors`.
    """
    peaks = (sizes / columns).amax(dim=1) / HEADROOM
    return torch.maximum(rows, peaks)


def column_floors(
    sizes: Float[Tensor, "rows n_in"], rows: Float[Tensor, " rows"]
) -> Float[Tensor, " n_in"]:
    """Column steps at which all but a tenth of the rows stay within the headroom.

    A column where most rows would leave it gets a larger step; where only a few would, `fitted`
    enlarges the steps of those rows.
    """
    return torch.quantile(sizes / rows[:, None], 1 - ROWS_LEFT_OUT, dim=0) / HEADROOM


def too_wide(
    peaks: Float[Tensor, " n_in"], columns: Float[Tensor, " n_in"]
) -> Bool[Tensor, " n_in"]:
    """Columns with a weight that would leave the headroom at these steps: its row's step would have to be enlarged for it.

    Args:
        peaks: largest absolute weight over its row's step.
    """
    return peaks > HEADROOM * columns


def sample_rows(weight: Float[Tensor, "out n_in"], most: int = SAMPLE_ROWS) -> Tensor:
    """Indices of at most so many rows, evenly spaced."""
    return torch.linspace(0, weight.shape[0] - 1, min(weight.shape[0], most)).long()


class _Sample(NamedTuple):
    """Some rows of a matrix, in units of each weight's step at distortion 1."""

    values: Float[Tensor, "rows n_in"]
    floors: Float[Tensor, " n_in"]
    squares: Float[Tensor, "rows n_in"]
    """Expected, of each weight around its column's mean."""

    def steps(self, wanted: Float[Tensor, " n_in"]) -> Float[Tensor, "rows n_in"]:
        """Steps where these are wanted, enlarged where codes would not fit."""
        columns = torch.maximum(self.floors, wanted)
        even = torch.ones_like(self.values[:, 0])
        return fitted(self.values.abs(), even, columns)[:, None] * columns

    def free(self, distortion: float) -> tuple[float, float]:
        """Bits and squared error of a weight whose code is the nearest one."""
        steps = self.steps(torch.full_like(self.floors, distortion**0.5))
        bits = expected_bits((self.squares / steps.double().square()).sqrt())
        error = (self.values / steps).round_() * steps - self.values
        return float(bits.mean()), float(error.double().square().mean())

    def along(self, distortion: float, states: int) -> tuple[float, float] | None:
        """The same along a trellis, but for columns whose codes do not fit; None where that does not help."""
        fine = torch.full_like(self.floors, finer(distortion, states) ** 0.5)
        free = too_wide(self.values.abs().amax(dim=0), fine)
        wanted = torch.where(free, distortion**0.5, fine)
        steps = self.steps(wanted)
        if bool(free.all()) or float((steps / wanted).log2().mean()) >= MOST_OCTAVES_COARSER:
            return None
        squared = steps.double().square()
        noise = squared * torch.where(free, SCALAR_ERROR, ERRORS[states])
        bound = 0.5 * (1 + self.squares / noise).log2()
        bits = bound + TRELLIS_EXCESS * bound.clamp(max=1)
        bits = torch.where(free, expected_bits((self.squares / squared).sqrt()), bits)
        error = self.squares * noise / (self.squares + noise)
        return float(bits.mean()), float(error.mean())


def curve_of(
    weight: Float[Tensor, "out n_in"],
    row_weights: Float[Tensor, " out"],
    column_steps: Float[Tensor, " n_in"],
    states: int = SCALAR,
) -> Curve:
    """Measure a matrix.

    Args:
        row_weights: g, how much each output counts. column_steps: D^(-1/2) of its inputs (see `methods.quantization.gptq`).
        states: of the trellis that codes follow where they fit along it.
    """
    picked = sample_rows(weight)
    values = weight[picked].float() * row_weights[picked, None].sqrt() / column_steps
    floors = column_floors(values.abs(), torch.ones_like(values[:, 0]))
    sample = _Sample(values, floors, _spread_squares(values))
    energy = float(values.double().square().mean()) or 1.0
    widest = 2 * float(values.abs().max())  # with steps beyond it all codes are zero
    bits, errors = [LEAST_BITS], [energy]
    for distortion in reversed(DISTORTIONS):
        if distortion**0.5 > widest:
            continue
        along = None if states == SCALAR else sample.along(distortion, states)
        rate, error = along or sample.free(distortion)
        errors.append(error)
        bits.append(max(LEAST_BITS, rate + MISFIT))
        if bits[-1] - bits[-2] < SATURATED and bits[-1] > 2 * LEAST_BITS:
            break
    coarse = sum(distortion**0.5 > widest for distortion in DISTORTIONS)
    missing = len(DISTORTIONS) - coarse - (len(bits) - 1)
    all_bits = [bits[-1]] * missing + bits[:0:-1] + [bits[0]] * coarse
    all_errors = [errors[-1]] * missing + errors[:0:-1] + [errors[0]] * coarse
    return Curve(
        elements=weight.numel(),
        overhead_bytes=sum(weight.shape),
        bits=tuple(np.minimum.accumulate(all_bits).tolist()),
        loss=tuple(0.5 * weight.numel() * error for error in all_errors),
        relative_error=tuple(np.maximum.accumulate(np.array(all_errors) / energy).tolist()),
    )


def factors_of(
    squares: Float[Tensor, "rows n_in"],
) -> tuple[Float[Tensor, " rows"], Float[Tensor, " n_in"]]:
    """A factor a row and one a column whose products stand for squares."""
    least = max(float(squares.mean()), torch.finfo(torch.float32).tiny) * LEAST_SHARE
    by_row, by_column = torch.ones_like(squares[:, 0]), torch.ones_like(squares[0])
    for _ in range(SPREAD_FITS):
        by_column = (squares / by_row[:, None]).mean(0).clamp(min=least)
        by_row = (squares / by_column).mean(1).clamp(min=LEAST_SHARE)
    return by_row, by_column


def _spread_squares(scaled: Float[Tensor, "rows n_in"]) -> Float[Tensor, "rows n_in"]:
    """Mean squares around columns' means, as products of a factor a row and one a column."""
    by_row, by_column = factors_of((scaled - scaled.mean(0)).double().square())
    return by_row[:, None] * by_column


def expected_bits(spread: Float[Tensor, "rows n_in"]) -> Float[Tensor, "rows n_in"]:
    """Entropy of normal values that are rounded to whole numbers, by their root mean square."""
    known = torch.tensor(_bits_by_spread(), dtype=torch.float64)
    place = (spread.log2() - FIRST_SPREAD) * PER_OCTAVE
    within = place.clamp(0, len(known) - 1.001)
    before = within.long()
    found = known[before] + (within - before) * (known[before + 1] - known[before])
    return found + (place - within).clamp(min=0) / PER_OCTAVE


@cache
def _bits_by_spread() -> list[float]:
    found = []
    for place in range(SPREADS):
        shares = tables().shares[table_of(place, EVEN)] / TOTAL
        found.append(float(-sum(share * math.log2(share) for share in shares if share)))
    return found
