"""The numbers that codes and scales stand for."""

from collections.abc import Callable

import torch
from torch import Tensor

from spq_core.errors import ArtifactError

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
"""What the sixteen codes of FP4 stand for."""
EXPONENT_BIAS = 127
MATRIX = 2


def powers_of_two(exponents: Tensor) -> Tensor:
    """Scales stored as bytes: 2^(byte − 127), in float32."""
    return torch.ldexp(torch.ones(exponents.shape), exponents.to(torch.int32) - EXPONENT_BIAS)


Block = tuple[int, int] | None
"""Rows and columns that share a scale, where the settings say so."""


def from_mxfp4(blocks: Tensor, scales: Tensor, _block: Block = None) -> Tensor:
    """Experts of gpt-oss.

    Args:
        blocks: bytes of two codes, the lower half first: [experts, outputs, blocks of a row, 16].
        scales: exponents: [experts, outputs, blocks of a row].

    Returns:
        [experts, inputs, outputs], exact in bfloat16.
    """
    table = torch.tensor(E2M1)
    experts = []
    for codes, exponents in zip(blocks, scales, strict=True):  # one at a time: codes are widened
        pairs = torch.stack([codes & 15, codes >> 4], dim=-1).flatten(-2)
        values = table[pairs.long()] * powers_of_two(exponents).unsqueeze(-1)
        experts.append(values.flatten(-2).T.to(torch.bfloat16))
    return torch.stack(experts)


def from_scaled(codes: Tensor, scales: Tensor, block: Block = None) -> Tensor:
    """W = codes · scales.

    Args:
        codes: [..., rows, columns] of FP8 or int8.
        scales: one, one a row ([rows] or [rows, 1]), or one a block.
        block: the last of a row or column may be shorter.

    Returns:
        bfloat16, each product rounded once.

    Raises:
        ArtifactError: the shapes do not go together.
    """
    wide = powers_of_two(scales) if scales.dtype == torch.uint8 else scales.float()
    return (codes.float() * _over(wide, codes.shape, block)).to(torch.bfloat16)


RULES: dict[str, Callable[[Tensor, Tensor, Block], Tensor]] = {
    "scaled": from_scaled,
    "mxfp4": from_mxfp4,
}


def _over(scales: Tensor, shape: torch.Size, block: Block) -> Tensor:
    """Scales that broadcast with codes of this shape."""
    if scales.numel() == 1:
        return scales.reshape(())
    if len(shape) < MATRIX:
        raise _mismatch(scales, shape)
    rows, columns = shape[-2:]
    if scales.shape[-1] == rows and scales.ndim == len(shape) - 1:
        return scales.unsqueeze(-1)
    if scales.ndim != len(shape):
        raise _mismatch(scales, shape)
    if tuple(scales.shape[-2:]) == (rows, 1):
        return scales
    if (
        block is None
    ):  # the last one may be shorter, so that its size cannot be told from their number
        raise _mismatch(scales, shape)
    height, width = block
    fits = (-(-rows // height), -(-columns // width)) == tuple(scales.shape[-2:])
    if not fits or scales.shape[:-2] != shape[:-2]:
        raise _mismatch(scales, shape)
    tall = scales.repeat_interleave(height, dim=-2)[..., :rows, :]
    return tall.repeat_interleave(width, dim=-1)[..., :columns]


def _mismatch(scales: Tensor, shape: torch.Size) -> ArtifactError:
    return ArtifactError(
        f"scales of shape {list(scales.shape)} are none for weights of shape {list(shape)}"
    )
