"""What a matrix costs in bytes, and in expected loss, for each level of its lattice.

Measured by rounding a sample of the matrix's weights, without error feedback; feedback moves the
weights by less than their spread, so the entropy is that of the final codes within a few percent.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

LEVELS = tuple(2.0 ** (exponent / 2) for exponent in range(-120, 1))
"""Levels at which a curve is measured, half an octave apart."""
SAMPLE = 1 << 16
LARGEST_CODE = 127
HEADROOM = 110
"""Codes that original weights may reach; feedback adds to them."""
ROWS_AT_ONCE = 8192
HUFFMAN_EXCESS = 0.04
"""Bits per code by which DEFLATE's Huffman codes exceed the entropy, tables included (measured)."""
LEAST_BITS = 1.0
"""A Huffman code has at least one bit."""


@dataclass(frozen=True, slots=True)
class Curve:
    """Bits per weight, loss and relative error of one matrix over `LEVELS`."""

    elements: int
    overhead_bytes: int
    """Steps and biases."""
    bits: tuple[float, ...]
    loss: tuple[float, ...]
    """Expected KL in nats per token; counts each weight's expected error, so it is a prediction."""
    relative_error: tuple[float, ...]
    """Of the output, squared."""

    def bytes_at(self, level: float) -> float:
        """Stored bytes at a level, between measured ones by interpolation in its logarithm."""
        return self.overhead_bytes + self.elements * _between(self.bits, level) / 8

    def loss_at(self, level: float) -> float:
        """Expected loss at a level."""
        return _between(self.loss, level)

    def level_with_bits(self, bits: float) -> float:
        """The level at which a weight takes `bits` bits."""
        return _inverse([-value for value in self.bits], -bits)

    def level_with_error(self, relative_error: float) -> float:
        """The level at which the squared relative output error is `relative_error`."""
        return _inverse(self.relative_error, relative_error)


def _between(values: tuple[float, ...], level: float) -> float:
    return float(np.interp(np.log2(level), np.log2(LEVELS), values))


def _inverse(rising: list[float] | tuple[float, ...], wanted: float) -> float:
    return float(2.0 ** np.interp(wanted, rising, np.log2(LEVELS)))


def curve_of(
    weight: Float[Tensor, "out n_in"],
    row_weights: Float[Tensor, " out"],
    column_steps: Float[Tensor, " n_in"],
) -> Curve:
    """Measure a matrix.

    Args:
        row_weights: g, how much each output counts. column_steps: U_jj of its inputs.
    """
    elements = weight.numel()
    stride = max(1, elements // SAMPLE)
    while stride > 1 and weight.shape[1] % stride == 0:
        stride -= 1  # a divisor of the row length would sample a few columns only
    flat = torch.arange(0, elements, stride)
    rows, columns = flat // weight.shape[1], flat % weight.shape[1]
    scaled = weight.flatten()[flat].double()
    scaled = scaled * row_weights.double()[rows].sqrt() / column_steps.double()[columns]
    # Codes have 8 bits: a column's step is never below its largest weight over `HEADROOM`.
    peaks = torch.zeros(weight.shape[1])
    for start in range(0, weight.shape[0], ROWS_AT_ONCE):
        some = slice(start, start + ROWS_AT_ONCE)
        sized = weight[some].float().abs() * row_weights[some, None].float().sqrt()
        peaks = torch.maximum(peaks, sized.amax(dim=0))
    finest = (peaks / HEADROOM / column_steps).double()[columns]
    energy = float(scaled.square().mean()) or 1.0
    bits, loss, relative = [], [], []
    for level in LEVELS:
        step = finest.clamp(min=level**0.5)
        codes = (scaled / step).round().clamp(-LARGEST_CODE, LARGEST_CODE)
        error = float((codes * step - scaled).square().mean())
        bits.append(max(LEAST_BITS, _entropy(codes) + HUFFMAN_EXCESS))
        loss.append(0.5 * elements * error)
        relative.append(error / energy)
    return Curve(
        elements=elements,
        overhead_bytes=sum(weight.shape),
        bits=tuple(bits),
        loss=tuple(loss),
        relative_error=tuple(np.maximum.accumulate(relative).tolist()),
    )


def _entropy(codes: Tensor) -> float:
    counts = torch.bincount((codes + LARGEST_CODE).long()).double()
    shares = counts[counts > 0] / codes.numel()
    return float(-(shares * shares.log2()).sum())
