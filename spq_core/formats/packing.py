"""Codes of few bits in bytes, without gaps: eight codes of b bits take b bytes."""

from typing import NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional

CODES_PER_PACK = 8
BYTE = 0xFF
HALF_BYTE, WHOLE_BYTE = 4, 8


class PackedParts(NamedTuple):
    """A matrix of packed codes, as it is stored."""

    packed: UInt8[Tensor, "n_out n_bytes"]
    scale: Float[Tensor, "n_out groups"]
    """float16."""
    zero: UInt8[Tensor, "n_out groups"]


def pack(codes: UInt8[Tensor, "out n_in"], bits: int) -> UInt8[Tensor, "out n_bytes"]:
    """Put eight codes of `bits` bits into `bits` bytes, the first code in the lowest bits.

    Columns are filled up with zeros to a multiple of eight.
    """
    padded = functional.pad(codes, (0, -codes.shape[1] % CODES_PER_PACK))
    if bits == WHOLE_BYTE:
        return padded
    if bits == HALF_BYTE:
        return padded[:, ::2] | (padded[:, 1::2] << HALF_BYTE)
    groups = padded.view(codes.shape[0], -1, CODES_PER_PACK).long()
    words = (groups << (bits * torch.arange(CODES_PER_PACK, device=codes.device))).sum(dim=2)
    at = 8 * torch.arange(bits, device=codes.device)
    return ((words[..., None] >> at) & BYTE).to(torch.uint8).flatten(1)


def unpack(packed: UInt8[Tensor, "out n_bytes"], bits: int, n_in: int) -> UInt8[Tensor, "out n_in"]:
    """The inverse of `pack`."""
    if bits == WHOLE_BYTE:
        return packed[:, :n_in]
    if bits == HALF_BYTE:
        low, high = packed & (BYTE >> HALF_BYTE), packed >> HALF_BYTE
        return torch.stack([low, high], dim=-1).flatten(1)[:, :n_in]
    groups = packed.view(packed.shape[0], -1, bits).long()
    words = (groups << (8 * torch.arange(bits, device=packed.device))).sum(dim=2)
    at = bits * torch.arange(CODES_PER_PACK, device=packed.device)
    codes = (words[..., None] >> at) & ((1 << bits) - 1)
    return codes.to(torch.uint8).flatten(1)[:, :n_in]
