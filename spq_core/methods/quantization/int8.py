"""Symmetric 8-bit quantization: scale, codes, and back.

Rows are processed in blocks, so a matrix of any size needs a few megabytes of float32 beside it.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float, Int8
from torch import Tensor

QMAX = 127
TENSOR_SCALE_FLOOR = 5e-7
CHANNEL_SCALE_FLOOR = 1e-6
BLOCK_BYTES = 16 << 20


class QuantizedWeight(NamedTuple):
    """weight ≈ codes * scale."""

    codes: Int8[Tensor, "out in"]
    scale: Float[Tensor, " n_scales"]


def quantize_per_tensor(weight: Float[Tensor, "out in"]) -> QuantizedWeight:
    """Quantize with one scale: codes = round(w / s), s = max|w| / 127.

    The floors of the scale are those of the SPQ authors' code (arXiv:2602.18420).
    """
    peak = torch.stack([rows.abs().max() for _, rows in _float_blocks(weight)]).max()
    scale = (peak / QMAX).clamp(min=TENSOR_SCALE_FLOOR).reshape(1)
    return QuantizedWeight(_codes(weight, scale), scale)


def quantize_per_channel(weight: Float[Tensor, "out in"]) -> QuantizedWeight:
    """Quantize with one scale per output row: s_i = max_j |w_ij| / 127."""
    peaks = torch.cat([rows.abs().amax(dim=1) for _, rows in _float_blocks(weight)])
    scale = (peaks / QMAX).clamp(min=CHANNEL_SCALE_FLOOR)
    return QuantizedWeight(_codes(weight, scale), scale)


def dequantize(quantized: QuantizedWeight) -> Float[Tensor, "out in"]:
    """Return codes * scale in float32."""
    return quantized.codes.float() * quantized.scale[:, None]


def _codes(weight: Tensor, scale: Tensor) -> Tensor:
    codes = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    for rows_at, rows in _float_blocks(weight):
        step = scale if scale.numel() == 1 else scale[rows_at, None]
        codes[rows_at] = (rows / step).round_().clamp_(-QMAX, QMAX).to(torch.int8)
    return codes


def _float_blocks(weight: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yield (row range, those rows in float32)."""
    step = max(1, BLOCK_BYTES // (4 * weight.shape[1]))
    for start in range(0, weight.shape[0], step):
        block = slice(start, min(start + step, weight.shape[0]))
        yield block, weight[block].float()
