"""8-bit codes that compress well: scales of columns, rounding, and pruning of codes (Double Compression, arXiv:2502.15443)."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int8
from torch import Tensor

from spq_core.formats.lattice.steps import OCTAVE, Steps, on_grid

QMAX = 127
ALPHAS = tuple(tenth / 10 for tenth in range(11))
ROWS_LOOKED_AT = 256
LEAST_PEAK = 1e-6
"""Inputs below this are as good as none; columns of theirs are scaled alike."""
MOST_OCTAVES = 15
"""Between the scales of two columns: as far as steps of columns reach."""
LEAST_STEP = 1e-12
ABOVE = 2.0 ** (1 / (2 * OCTAVE))
"""So that the nearest step of the grid is never below what was wanted, and no code is clipped."""


class Rounded(NamedTuple):
    """A matrix as codes: weight · scales ≈ codes · steps of rows."""

    codes: Int8[Tensor, "out n_in"]
    steps: Steps
    """Those of columns are 1: scales are in the weights."""


def column_scales(peak: Float[Tensor, " n_in"], alpha: float) -> Float[Tensor, " n_in"]:
    """max|x_j|^α to the nearest power of two, the least of them 1.

    Powers of two, as ours: what stands before a matrix can be divided by them without any rounding.
    """
    octaves = (alpha * peak.clamp(min=LEAST_PEAK).log2()).round()
    return (octaves - octaves.min()).clamp(max=MOST_OCTAVES).exp2()


def round_codes(weight: Float[Tensor, "out n_in"], scales: Literal["matrix", "row"]) -> Rounded:
    """Round to the nearest of 255 codes; the largest weight of a row, or of the matrix, has the largest.

    Args:
        weight: columns scaled already.
    """
    peaks = weight.abs().amax(dim=1)
    if scales == "matrix":
        peaks = peaks.max().expand(peaks.shape)
    base, exponents = on_grid((peaks * (ABOVE / QMAX)).clamp(min=LEAST_STEP))
    steps = Steps(base, exponents, torch.zeros(weight.shape[1], dtype=torch.uint8))
    codes = weight / steps.row_steps.to(weight.device)[:, None]
    return Rounded(codes.round_().clamp_(-QMAX, QMAX).to(torch.int8), steps)


def entropy(codes: Int8[Tensor, "out n_in"]) -> float:
    """Bits a code of an ideal coder that knows how often each occurs."""
    counts = _counts(codes)
    shares = counts[counts > 0] / codes.numel()
    return float(-(shares * shares.log2()).sum())


def relative_error(
    weight: Float[Tensor, "out n_in"],
    back: Float[Tensor, "out n_in"],
    second_moment: Float[Tensor, "n_in n_in"],
) -> float:
    """E‖(W' − W) x‖² / E‖W x‖²; 0 for a matrix without outputs."""
    energy = float(((weight @ second_moment) * weight).sum())
    change = back - weight
    return float(((change @ second_moment) * change).sum()) / energy if energy > 0 else 0.0


def choose_alpha(
    weights: Sequence[Float[Tensor, "out n_in"]],
    peak: Float[Tensor, " n_in"],
    second_moment: Float[Tensor, "n_in n_in"],
    scales: Literal["matrix", "row"],
    most_error: float,
) -> float:
    """Of 0, 0.1, …, 1 the one with fewest bits whose error is allowed for each matrix; else that with the least error.

    The objective is ours: which one the paper takes is not public. Bits are those of an ideal coder, errors those of some evenly
    spaced rows.

    Args:
        weights: of matrices that share an input.
    """
    tried = [
        (*_bits_and_error(weights, column_scales(peak, alpha), second_moment, scales), alpha)
        for alpha in ALPHAS
    ]
    allowed = [one for one in tried if one[1] <= most_error]
    if not allowed:
        return min(tried, key=lambda one: one[1])[2]
    return min(allowed)[2]


def _bits_and_error(
    weights: Sequence[Tensor],
    scale: Tensor,
    second_moment: Tensor,
    scales: Literal["matrix", "row"],
) -> tuple[float, float]:
    bits, error = 0.0, 0.0
    for weight in weights:
        rounded = round_codes(weight * scale, scales)
        every = slice(None, None, -(-len(weight) // ROWS_LOOKED_AT))
        back = rounded.codes[every] * rounded.steps.row_steps.to(weight.device)[every, None] / scale
        error = max(error, relative_error(weight[every], back, second_moment))
        bits += entropy(rounded.codes[every]) * weight.numel()
    return bits, error


def pruned_codes(
    rounded: Rounded,
    importance: Float[Tensor, " n_in"],
    share: float,
    by: Literal["score", "rate"],
) -> Int8[Tensor, "out n_in"]:
    """Set codes to zero until a share of them is; those that are zero already count.

    Args:
        importance: of each column as it was rounded: max|x_j| by score, √E[x_j²] by rate.
        by: `score`: |w_ij| · importance_j, with w_ij as rounded (as published, up to the step of the row, which we count);
            `rate`: the square of that over the bits that an ideal coder saves.
    """
    codes = rounded.codes
    steps = rounded.steps.row_steps.to(codes.device)
    scores = codes.abs().float() * steps[:, None] * importance
    if by == "rate":
        scores = scores.square_() / _bits_saved(codes, share)
    count = int(share * codes.numel())
    if count == 0:
        return codes
    gone = scores.flatten().argsort(stable=True)[:count]
    pruned = codes.clone()
    pruned.view(-1)[gone] = 0
    return pruned


def _bits_saved(codes: Tensor, share: float) -> Tensor:
    """By each code that becomes zero, once a share of them is; at least a little."""
    counts = _counts(codes).clamp(min=1)
    saved = (max(share * codes.numel(), float(counts[QMAX + 1])) / counts).log2().clamp(min=1e-3)
    return saved.float()[codes.int() + QMAX + 1]


def _counts(codes: Tensor) -> Tensor:
    return torch.bincount(codes.flatten().int() + QMAX + 1, minlength=2 * QMAX + 2).double()
