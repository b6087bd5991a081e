"""What a matrix costs in bytes, and in expected loss, for each distortion of its lattice.

Measured by rounding a sample of the matrix's weights, without error feedback; feedback moves the
weights by less than their spread, so the entropy is that of the final codes within a few percent.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

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
HUFFMAN_EXCESS = 0.04
"""Bits per code by which DEFLATE's Huffman codes exceed the entropy, tables included (measured)."""
LEAST_BITS = 1.0
"""A Huffman code has at least one bit."""


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


def sample_rows(weight: Float[Tensor, "out n_in"], most: int = SAMPLE_ROWS) -> Tensor:
    """Indices of at most so many rows, evenly spaced."""
    return torch.linspace(0, weight.shape[0] - 1, min(weight.shape[0], most)).long()


def curve_of(
    weight: Float[Tensor, "out n_in"],
    row_weights: Float[Tensor, " out"],
    column_steps: Float[Tensor, " n_in"],
) -> Curve:
    """Measure a matrix.

    Args:
        row_weights: g, how much each output counts. column_steps: D^(-1/2) of its inputs (see `methods.quantization.gptq`).
    """
    picked = sample_rows(weight)
    # In units of each weight's step at distortion 1.
    scaled = weight[picked].float() * row_weights[picked, None].sqrt() / column_steps
    sizes, even = scaled.abs(), torch.ones_like(scaled[:, 0])
    floors = column_floors(sizes, even)
    energy = float(scaled.double().square().mean()) or 1.0
    widest = 2 * float(sizes.max())  # with steps beyond it all codes are zero
    bits, errors = [LEAST_BITS], [energy]
    for distortion in reversed(DISTORTIONS):
        step = distortion**0.5
        if step > widest:
            continue
        columns = floors.clamp(min=step)
        steps = fitted(sizes, even, columns)[:, None] * columns
        codes = (scaled / steps).round_()
        errors.append(float((codes * steps - scaled).double().square().mean()))
        bits.append(max(LEAST_BITS, _entropy(codes) + HUFFMAN_EXCESS))
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


def _entropy(codes: Tensor) -> float:
    counts = torch.bincount((codes + LARGEST_CODE).long().flatten()).double()
    shares = counts[counts > 0] / codes.numel()
    return float(-(shares * shares.log2()).sum())
