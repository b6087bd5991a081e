"""Blocks of ggml's types: from codes and scales to bytes, and back. Bit for bit as ggml has them.

Whatever a type cuts its codes into, it stores a part of them in planes: a byte holds the same part of the codes of several runs of columns, the
first run in its lowest bits. Types differ in how wide a run is, and in which bits of a code go where.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from spq_core.formats.ggml.types import BlockType

BYTE = 8
HALF_BYTES = 2
"""Of a float16."""
SIGN = 128
Part = Callable[[str], Tensor]
"""A part of every block, by name."""


class Planes(NamedTuple):
    """Which bits of codes a part of a block holds, and in which order."""

    name: str
    shift: int
    """The lowest of them."""
    bits: int
    """How many."""
    width: int
    """Columns of a run."""


_LOW = Planes("low", 0, 4, 16)
_CODES: dict[str, tuple[Planes, ...]] = {
    "Q4_0": (_LOW,),
    "IQ4_NL": (_LOW,),
    "Q4_1": (_LOW,),
    "Q5_0": (Planes("high", 4, 1, 1), _LOW),
    "Q5_1": (Planes("high", 4, 1, 1), _LOW),
    "Q8_0": (Planes("low", 0, 8, 1),),
    "IQ4_XS": (_LOW,),
    "Q4_K": (Planes("low", 0, 4, 32),),
    "Q5_K": (Planes("high", 4, 1, 32), Planes("low", 0, 4, 32)),
    "Q6_K": (Planes("low", 0, 4, 64), Planes("high", 4, 2, 32)),
    "Q3_K": (Planes("high", 2, 1, 32), Planes("low", 0, 2, 32)),
}
_SCALES: dict[str, tuple[Planes, ...]] = {
    "Q3_K": (Planes("scales", 0, 4, 8), Planes("later_scales", 4, 2, 4)),
    "IQ4_XS": (Planes("scales", 0, 4, 1), Planes("high_scales", 4, 2, 1)),
    "Q6_K": (Planes("scales", 0, 8, 1),),
}
_ORDER: dict[str, tuple[tuple[str, int], ...]] = {
    "Q4_0": (("d", 2), ("low", 16)),
    "IQ4_NL": (("d", 2), ("low", 16)),
    "Q4_1": (("d", 2), ("m", 2), ("low", 16)),
    "Q5_0": (("d", 2), ("high", 4), ("low", 16)),
    "Q5_1": (("d", 2), ("m", 2), ("high", 4), ("low", 16)),
    "Q8_0": (("d", 2), ("low", 32)),
    "IQ4_XS": (("d", 2), ("high_scales", 2), ("scales", 4), ("low", 128)),
    "Q4_K": (("d", 2), ("m", 2), ("pairs", 12), ("low", 128)),
    "Q5_K": (("d", 2), ("m", 2), ("pairs", 12), ("high", 32), ("low", 128)),
    "Q6_K": (("low", 128), ("high", 64), ("scales", 16), ("d", 2)),
    "Q3_K": (("high", 32), ("low", 64), ("scales", 8), ("later_scales", 4), ("d", 2)),
}
"""Parts of a block in their order, and their bytes."""


class Blocks(NamedTuple):
    """Rows of a matrix in one type, taken apart: w = d · scale · code + offset, by group of columns."""

    codes: Int[Tensor, "n columns"]
    """In steps: -8 to 7, say; with `values`, one of them."""
    d: Float[Tensor, "n blocks"]
    """In float16."""
    offset: Float[Tensor, "n blocks"] | None = None
    """In float16: what is added, or in blocks of groups what `minima` are multiplied by and is taken off."""
    scales: Int[Tensor, "n groups"] | None = None
    """In blocks of groups."""
    minima: Int[Tensor, "n groups"] | None = None
    """In blocks of groups with offsets; 0 to 63."""

    def rows(self, at: slice) -> "Blocks":
        """Some of them."""
        codes, d, *others = self
        return Blocks(codes[at], d[at], *(None if part is None else part[at] for part in others))


def grouped(rows: Tensor, size: int) -> Tensor:
    """The last axis in pieces of that size."""
    return rows.reshape(*rows.shape[:-1], -1, size)


def steps_and_offsets(kind: BlockType, blocks: Blocks) -> tuple[Tensor, Tensor | None]:
    """What codes are multiplied by and what is added, by group, in float32: (n, groups)."""
    step = blocks.d.float().repeat_interleave(kind.groups, dim=1)
    if blocks.scales is not None:
        step = step * blocks.scales.float()
    if blocks.offset is None:
        return step, None
    offset = blocks.offset.float().repeat_interleave(kind.groups, dim=1)
    return step, offset if blocks.minima is None else -offset * blocks.minima.float()


def widened(kind: BlockType, blocks: Blocks) -> Float[Tensor, "n columns"]:
    """The rows in float32."""
    step, offset = steps_and_offsets(kind, blocks)
    found = grouped(blocks.codes.float(), kind.group) * step[..., None]
    return (found if offset is None else found + offset[..., None]).flatten(1)


def pack(kind: BlockType, blocks: Blocks) -> UInt8[Tensor, "n bytes"]:
    """The bytes of whole rows."""
    counted = grouped(_counted(kind, blocks.codes), kind.columns)
    parts = {"d": _bytes_of(blocks.d)}
    parts |= {one.name: _packed(counted, one) for one in _CODES[kind.name]}
    if blocks.offset is not None:
        parts["m"] = _bytes_of(blocks.offset)
    if blocks.scales is not None:
        scales = grouped(blocks.scales, kind.groups)
        if blocks.minima is not None:
            parts["pairs"] = _paired(scales, grouped(blocks.minima, kind.groups))
        else:
            from_low = (scales - _first_scale(kind)) & 255
            parts |= {
                one.name: _packed(from_low.to(torch.uint8), one) for one in _SCALES[kind.name]
            }
    return torch.cat([parts[name] for name, _ in _ORDER[kind.name]], dim=2).flatten(1).contiguous()


def unpack(kind: BlockType, packed: UInt8[Tensor, "n bytes"]) -> Blocks:
    """What the bytes of whole rows say."""
    sizes = [size for _, size in _ORDER[kind.name]]
    split = torch.split(grouped(packed, kind.bytes), sizes, dim=2)
    parts = {name: part for (name, _), part in zip(_ORDER[kind.name], split, strict=True)}
    scales = minima = None
    if "pairs" in parts:
        scales, minima = _unpaired(parts["pairs"])
    elif kind.name in _SCALES:
        scales = _unpacked(parts, _SCALES[kind.name], signed=not _first_scale(kind))
        scales = scales + _first_scale(kind)
    codes = _unpacked(parts, _CODES[kind.name], signed=kind.bits > BYTE)
    if kind.values:
        codes = torch.tensor(kind.values, device=packed.device, dtype=torch.int16)[codes.long()]
    elif kind.bits < BYTE:
        codes = codes + kind.low
    offset = _halves(parts["m"]) if "m" in parts else None
    return Blocks(codes, _halves(parts["d"]), offset, scales, minima)


def _first_scale(kind: BlockType) -> int:
    """What scales are counted from: from 0, in two's complement, where they have all 8 bits."""
    return 0 if kind.name == "Q6_K" else kind.scale_low


def _counted(kind: BlockType, codes: Tensor) -> Tensor:
    """Codes from zero; those of 8 bits in two's complement."""
    if kind.values:
        values = torch.tensor(kind.values, device=codes.device, dtype=codes.dtype)
        return torch.searchsorted(values, codes.contiguous()).to(torch.uint8)
    return ((codes - kind.low) if kind.bits < BYTE else codes & 255).to(torch.uint8)


def _bytes_of(halves: Tensor) -> Tensor:
    return grouped(halves.half().contiguous().view(torch.uint8), HALF_BYTES)


def _halves(parts: Tensor) -> Tensor:
    return parts.contiguous().view(torch.float16).flatten(1)


def _shifts(one: Planes, like: Tensor) -> Tensor:
    return torch.arange(0, BYTE, one.bits, device=like.device, dtype=torch.uint8)[:, None]


def _packed(counted: Tensor, one: Planes) -> Tensor:
    """Bytes of a part: (n, blocks, bytes)."""
    bits = (counted >> one.shift) & ((1 << one.bits) - 1)
    runs = bits.reshape(*bits.shape[:2], -1, BYTE // one.bits, one.width)
    found: Tensor = (runs << _shifts(one, bits)).sum(dim=3, dtype=torch.uint8)
    return found.flatten(2)


def _unpacked(parts: dict[str, Tensor], planes: tuple[Planes, ...], *, signed: bool) -> Tensor:
    """Codes from zero, or in two's complement: (n, columns)."""
    found: Tensor | None = None
    for one in planes:
        packed = parts[one.name]
        runs = packed.reshape(*packed.shape[:2], -1, 1, one.width)
        bits = ((runs >> _shifts(one, packed)) & ((1 << one.bits) - 1)).flatten(2) << one.shift
        found = bits if found is None else found | bits
    assert found is not None  # noqa: S101 - every type has planes
    codes = found.flatten(1).short()
    return (codes ^ SIGN) - SIGN if signed else codes


def _paired(scales: Tensor, minima: Tensor) -> Tensor:
    """Eight scales and eight minima of 6 bits in 12 bytes (`get_scale_min_k4`)."""
    scales, minima = scales.to(torch.uint8), minima.to(torch.uint8)
    first = [part[..., :4] | ((part[..., 4:] >> 4) << 6) for part in (scales, minima)]
    last = (scales[..., 4:] & 15) | ((minima[..., 4:] & 15) << 4)
    return torch.cat([*first, last], dim=2)


def _unpaired(packed: Tensor) -> tuple[Tensor, Tensor]:
    scales, minima, last = torch.split(packed, 4, dim=2)
    later_scales = (last & 15) | ((scales >> 6) << 4)
    later_minima = (last >> 4) | ((minima >> 6) << 4)
    return (
        torch.cat([scales & 63, later_scales], dim=2).flatten(1).short(),
        torch.cat([minima & 63, later_minima], dim=2).flatten(1).short(),
    )
