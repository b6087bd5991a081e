"""Multiply activations by 4-bit weights that take half a byte each.

torch's packed kernel reads codes in blocks of rows: of 64 with AVX-512, of 32 with AVX2. A block
goes by columns, and a byte holds row r of its first half and row r of its second. That order is
compared once with what torch packs by itself; where it is another, there is no kernel, and layers
stay in their stored form.

Few activation rows (decoding) go through the kernel. Many (prefill) are multiplied by tiles of
widened weights, so at most one tile exists in floating point. On CUDA only tiles are used; those
lines have not run on a GPU yet. Under torch.compile, and where a gradient is asked for, the product is
the operator `spq::int4_linear`.
"""

from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from jaxtyping import BFloat16, Float, Int, UInt8
from torch import Tensor
from torch.nn import functional

from spq_core.formats.product_dtype import product_dtype

ROW_MULTIPLE = 64
"""Rows are filled up to this, so that there are whole blocks only."""
BLOCK_ROWS = (64, 32)
GROUP_SIZES = (256, 128, 64, 32)
"""Columns with a common scale that the kernel takes."""
DECODE_ROWS = 64
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
    return (low | (high << HALF_BYTE)).reshape(n_out, n_in // 2).contiguous()


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
    if torch.compiler.is_compiling() or (torch.is_grad_enabled() and x.requires_grad):
        product: Tensor = _operator(x, blocks, steps, bias, n_out, rows, group_size)
        return product
    return _product(x, blocks, steps, bias, n_out, rows, group_size)


def _product(
    x: Tensor,
    blocks: Tensor,
    steps: Tensor,
    bias: Tensor | None,
    n_out: int,
    rows: int,
    group_size: int,
) -> Tensor:
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
        flat = flat.to(product_dtype(flat))
        product = flat.new_empty(flat.shape[0], blocks.shape[0])
        by_half = product.view(len(flat), len(blocks) // rows, 2, rows // 2)
        for some, half, weight in _tiles(blocks, steps, rows, group_size, flat.dtype):
            by_half[:, some, half] = (flat @ weight).view(len(flat), -1, rows // 2)
    product = product[:, :n_out].to(x.dtype).contiguous()
    if bias is not None:
        product = product + bias.to(product.dtype)
    return product.reshape(*x.shape[:-1], n_out)


def _tiles(
    blocks: Tensor, steps: Tensor, rows: int, group_size: int, dtype: torch.dtype
) -> Iterator[tuple[slice, int, Tensor]]:
    """Some blocks, which half of their rows, and the weight of those rows transposed: (n_in, rows).

    One after the other. Every step runs over long stretches of memory, and codes stay bytes as long
    as they can: at the stride of a single block all this takes four times as long.
    """
    n_in, per_half = 2 * blocks.shape[1], rows // 2
    by_column = blocks.view(-1, n_in, per_half).transpose(0, 1)
    n_blocks = by_column.shape[1]
    scale, zero = scale_and_zero(steps)
    groups = len(scale)
    scales = scale.to(dtype).view(groups, n_blocks, 2, per_half)
    zeros = zero.to(torch.int8).view(groups, n_blocks, 2, per_half)
    on_cpu = blocks.device.type == "cpu"
    tile = max(1, TILE_BYTES // (2 * n_in * rows)) if on_cpu else n_blocks
    for start in range(0, n_blocks, tile):
        some = slice(start, min(start + tile, n_blocks))
        both = by_column[:, some].contiguous()
        for half, codes in enumerate((both & LOW, both >> HALF_BYTE)):
            signed = codes.view(torch.int8).view(groups, group_size, -1)
            signed.sub_(zeros[:, some, half].reshape(groups, 1, -1))
            weight = signed.to(dtype).mul_(scales[:, some, half].reshape(groups, 1, -1))
            yield some, half, weight.view(n_in, -1)


_operator = torch.library.custom_op("spq::int4_linear", _product, mutates_args=())


@_operator.register_fake
def _shape_of(
    x: Tensor, blocks: Tensor, steps: Tensor, bias: Tensor | None, n_out: int, *_: int
) -> Tensor:
    del blocks, steps, bias
    return x.new_empty(*x.shape[:-1], n_out)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    del output
    x, blocks, steps, _, ctx.n_out, ctx.rows, ctx.group_size = inputs
    ctx.save_for_backward(blocks, steps)
    ctx.n_in = x.shape[-1]


def _gradient(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    """Towards the activations: gradient @ weight, in float32. Towards the bias: its sum."""
    blocks, steps = ctx.saved_tensors
    rows = gradient.reshape(-1, ctx.n_out).float()
    rows = functional.pad(rows, (0, blocks.shape[0] - ctx.n_out))
    by_half = rows.view(len(rows), len(blocks) // ctx.rows, 2, ctx.rows // 2)
    summed = rows.new_zeros(len(rows), 2 * blocks.shape[1])
    for some, half, weight in _tiles(blocks, steps, ctx.rows, ctx.group_size, rows.dtype):
        summed.addmm_(by_half[:, some, half].flatten(1), weight.T)
    at_input = summed[:, : ctx.n_in].to(gradient.dtype)
    at_bias = gradient.reshape(-1, ctx.n_out).sum(0) if ctx.needs_input_grad[3] else None
    at_input = at_input.reshape(*gradient.shape[:-1], ctx.n_in)
    return at_input, None, None, at_bias, None, None, None


_operator.register_autograd(_gradient, setup_context=_remember)
