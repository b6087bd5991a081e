"""Multiply activations by 4-bit weights that take half a byte each.

torch's packed kernel reads codes in blocks of rows: of 64 with AVX-512, of 32 with AVX2. A block
goes by columns, and a byte holds row r of its first half and row r of its second. That order is
compared once with what torch packs by itself; where it is another, there is no kernel, and layers
stay in their stored form.

Few activation rows (decoding) go through the kernel. Many (prefill) are multiplied by tiles of
widened weights, so at most one tile exists in floating point. On CUDA only tiles are used; those
lines have not run on a GPU yet.
"""

from functools import cache

import torch
from jaxtyping import BFloat16, Float, Int, UInt8
from torch import Tensor
from torch.nn import functional

ROW_MULTIPLE = 64
"""Rows are filled up to this, so that there are whole blocks only."""
BLOCK_ROWS = (64, 32)
GROUP_SIZES = (256, 128, 64, 32)
"""Columns with a common scale that the kernel takes."""
DECODE_ROWS = 32
"""Up to this many activation rows the kernel beats tiles (measured with AVX-512)."""
TILE_BYTES = 4 << 20
LOW, HALF_BYTE = 15, 4
MIDDLE = 8
"""The code that the kernel takes for zero."""


@cache
def block_rows() -> int | None:
    """Rows of the kernel's blocks on this processor; None if it cannot be used."""
    pack = getattr(torch.ops.aten, "_convert_weight_to_int4pack_for_cpu", None)
    if pack is None:
        return None
    codes = ((torch.arange(128 * 64) * 7) % 16).view(128, 64)
    theirs = pack(codes.int(), 1)
    for rows in BLOCK_ROWS:
        ours = to_blocks(codes.to(torch.uint8), rows)
        if torch.equal(theirs.flatten(), ours.flatten()) and _multiplies(ours, codes):
            return rows
    return None


def _multiplies(blocks: Tensor, codes: Tensor) -> bool:
    """Whether the kernel computes what it should."""
    x = ((torch.arange(3 * 64) % 5) - 2).view(3, 64).to(torch.bfloat16)
    steps = torch.tensor([0.5, 0.25], dtype=torch.bfloat16).expand(2, 128, 2).contiguous()
    weight = (codes.float() - MIDDLE) * 0.5 + 0.25
    expected = x.float() @ weight.T
    product: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(x, blocks, 32, steps)  # noqa: SLF001
    return torch.allclose(product.float(), expected, rtol=1e-2, atol=0.5)


def kernel_group(group_size: int) -> int | None:
    """The widest group of the kernel that divides groups of this size; None if there is none."""
    return next((size for size in GROUP_SIZES if group_size % size == 0), None)


def to_blocks(codes: UInt8[Tensor, "n_out n_in"], rows: int) -> UInt8[Tensor, "n_out half"]:
    """Put codes in the kernel's order; n_out is a multiple of `rows`, n_in is even."""
    n_out, n_in = codes.shape
    by_column = codes.view(n_out // rows, rows, n_in).transpose(1, 2)
    low, high = by_column[..., : rows // 2], by_column[..., rows // 2 :]
    return (low | (high << HALF_BYTE)).reshape(n_out, n_in // 2)


def from_blocks(blocks: UInt8[Tensor, "n_out half"], rows: int) -> UInt8[Tensor, "n_out n_in"]:
    """The inverse of `to_blocks`."""
    n_out, n_in = blocks.shape[0], 2 * blocks.shape[1]
    by_column = blocks.view(n_out // rows, n_in, rows // 2)
    codes = torch.cat([by_column & LOW, by_column >> HALF_BYTE], dim=2)
    return codes.transpose(1, 2).reshape(n_out, n_in)


def rows_from_blocks(
    blocks: UInt8[Tensor, "n_out half"], ids: Int[Tensor, " k"], rows: int
) -> UInt8[Tensor, "k n_in"]:
    """The codes of some rows."""
    by_column = blocks.view(-1, 2 * blocks.shape[1], rows // 2)
    place = ids % rows
    both = by_column[ids // rows, :, place % (rows // 2)]
    return torch.where((place < rows // 2)[:, None], both & LOW, both >> HALF_BYTE)


def steps_of(
    scale: Float[Tensor, "n_out groups"], zero: UInt8[Tensor, "n_out groups"]
) -> BFloat16[Tensor, "groups n_out 2"]:
    """Scales and offsets as the kernel takes them: weight = (code − 8) · scale + offset."""
    offset = (MIDDLE - zero.float()) * scale.float()
    both = torch.stack([scale.float().T, offset.T], dim=-1)
    return both.to(torch.bfloat16).contiguous()


def scale_and_zero(
    steps: BFloat16[Tensor, "groups n_out 2"],
) -> tuple[Float[Tensor, "groups n_out"], Float[Tensor, "groups n_out"]]:
    """The inverse of `steps_of`, in float32: offsets are rounded there, zero points are integers."""
    scale, offset = steps[..., 0].float(), steps[..., 1].float()
    return scale, MIDDLE - (offset / scale.clamp(min=torch.finfo(torch.float32).tiny)).round()


def int4_linear(
    x: Float[Tensor, "*batch n_in"],
    blocks: UInt8[Tensor, "n_padded half"],
    steps: BFloat16[Tensor, "groups n_padded 2"],
    bias: Float[Tensor, " n_out"] | None,
    *,
    n_out: int,
    rows: int,
    group_size: int,
) -> Float[Tensor, "*batch n_out"]:
    """Return x @ weight.T + bias in x's dtype.

    Args:
        rows: of a block. group_size: the kernel's, one of `GROUP_SIZES`; divides 2 · half.
    """
    flat = x.reshape(-1, x.shape[-1])
    missing = 2 * blocks.shape[1] - flat.shape[1]
    if missing:
        flat = functional.pad(flat, (0, missing))
    if flat.shape[0] <= DECODE_ROWS and x.device.type == "cpu":
        narrow = flat.to(torch.bfloat16).contiguous()
        product: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(  # noqa: SLF001
            narrow, blocks, group_size, steps
        )
    else:
        product = _tiled(flat, blocks, steps, rows, group_size)
    product = product[:, :n_out].to(x.dtype)
    if bias is not None:
        product = product + bias.to(product.dtype)
    return product.reshape(*x.shape[:-1], n_out)


def _tiled(x: Tensor, blocks: Tensor, steps: Tensor, rows: int, group_size: int) -> Tensor:
    """Multiply x by the weight, widening some blocks of rows at a time."""
    n_padded, n_in = blocks.shape[0], 2 * blocks.shape[1]
    scale, zero = scale_and_zero(steps)
    tile = n_padded if x.device.type != "cpu" else max(1, TILE_BYTES // (4 * n_in * rows)) * rows
    product = x.new_empty(x.shape[0], n_padded)
    for start in range(0, n_padded, tile):
        at = slice(start, min(start + tile, n_padded))
        codes = from_blocks(blocks[at], rows).view(-1, n_in // group_size, group_size)
        part = (codes - zero[:, at].T[..., None]) * scale[:, at].T[..., None]
        product[:, at] = x @ part.view(-1, n_in).to(x.dtype).T
    return product
