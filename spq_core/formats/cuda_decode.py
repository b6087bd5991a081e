"""Products of a few activation rows with packed weights on a GPU, in Triton.

Decoding reads every weight once a token, so its time is that of the bytes it reads: a kernel that
widened the matrix first would read and write five times as much as the codes are. Each program here
takes some output rows and walks over their columns; codes become floating point in registers.

Triton comes with torch's CUDA wheels. Where it is missing, `packed_kernel_works` says so, and products take the tiled
route. Checked against that route in Triton's interpreter; not yet timed on a GPU.
"""

import importlib.util
from typing import Any

import torch
from jaxtyping import Float, Int8, UInt8
from torch import Tensor

ROWS = 16
"""Activation rows of one tile; a tensor core's least."""
OUTPUTS = 16
"""Output rows of one program: few, so that narrow matrices too fill a GPU."""
COLUMNS = 256
GROUP_COLUMNS = (128, 64, 32)
"""Columns of a step over grouped codes; one divides the group."""
DTYPES = (torch.bfloat16, torch.float16)
HAS_TRITON = importlib.util.find_spec("triton") is not None

if HAS_TRITON:
    import triton
    import triton.language as tl

    @triton.jit  # type: ignore[untyped-decorator]
    def _int8_rows(
        x_at: Any, codes_at: Any, scale_at: Any, out_at: Any,
        n_rows: Any, n_out: Any, n_in: Any, stride: Any, scale_stride: Any,
        tile_rows: tl.constexpr, tile_outputs: tl.constexpr, tile_columns: tl.constexpr,
    ) -> None:  # fmt: skip
        rows = tl.arange(0, tile_rows)[:, None]
        outputs = (tl.program_id(0) * tile_outputs + tl.arange(0, tile_outputs)).to(tl.int64)[
            None, :
        ]
        sums = tl.zeros((tile_rows, tile_outputs), tl.float32)
        for start in range(0, n_in, tile_columns):
            columns = start + tl.arange(0, tile_columns)
            x = tl.load(
                x_at + rows * n_in + columns[None, :],
                mask=(rows < n_rows) & (columns[None, :] < n_in), other=0.0,
            )  # fmt: skip
            codes = tl.load(
                codes_at + outputs * stride + columns[:, None],
                mask=(outputs < n_out) & (columns[:, None] < n_in), other=0,
            )  # fmt: skip
            sums = tl.dot(x, codes.to(x.dtype), sums)
        scale = tl.load(scale_at + outputs * scale_stride, mask=outputs < n_out, other=0.0)
        tl.store(
            out_at + rows * n_out + outputs, sums * scale.to(tl.float32),
            mask=(rows < n_rows) & (outputs < n_out),
        )  # fmt: skip

    @triton.jit  # type: ignore[untyped-decorator]
    def _int4_rows(
        x_at: Any, packed_at: Any, scale_at: Any, zero_at: Any, out_at: Any,
        n_rows: Any, n_out: Any, n_in: Any, stride: Any, groups: Any, group_size: Any,
        tile_rows: tl.constexpr, tile_outputs: tl.constexpr, tile_columns: tl.constexpr,
    ) -> None:  # fmt: skip
        rows = tl.arange(0, tile_rows)[:, None]
        outputs = (tl.program_id(0) * tile_outputs + tl.arange(0, tile_outputs)).to(tl.int64)[
            None, :
        ]
        inside = outputs < n_out
        sums = tl.zeros((tile_rows, tile_outputs), tl.float32)
        for start in range(0, n_in, tile_columns):
            pairs = start // 2 + tl.arange(0, tile_columns // 2)
            here = (pairs * 2)[None, :]
            known = rows < n_rows
            even = tl.load(x_at + rows * n_in + here, mask=known & (here < n_in), other=0.0)
            odd = tl.load(x_at + rows * n_in + here + 1, mask=known & (here + 1 < n_in), other=0.0)
            packed = tl.load(
                packed_at + outputs * stride + pairs[:, None],
                mask=inside & (pairs[:, None] * 2 < n_in), other=0,
            )  # fmt: skip
            group = start // group_size
            scale = tl.load(scale_at + outputs * groups + group, mask=inside, other=0.0)
            zero = tl.load(zero_at + outputs * groups + group, mask=inside, other=0)
            scale, zero = scale.to(tl.float32), zero.to(tl.float32)
            low = ((packed & 15).to(tl.float32) - zero) * scale
            high = ((packed >> 4).to(tl.float32) - zero) * scale
            sums = tl.dot(even, low.to(even.dtype), sums)
            sums = tl.dot(odd, high.to(odd.dtype), sums)
        tl.store(out_at + rows * n_out + outputs, sums, mask=(rows < n_rows) & inside)


def takes(rows: Tensor) -> bool:
    """Whether these activations are few enough, on a GPU, and narrow."""
    decoding = rows.shape[0] <= ROWS and rows.dtype in DTYPES
    return HAS_TRITON and rows.device.type == "cuda" and decoding


def int8_rows(
    rows: Float[Tensor, "rows n_in"],
    codes: Int8[Tensor, "n_out n_padded"],
    scale: Float[Tensor, " n_scales"],
) -> Float[Tensor, "rows n_out"]:
    """Return rows @ (codes * scale).T in the dtype of `rows`, summed in float32.

    Args:
        rows: at most 16, bfloat16 or float16.
        scale: (n_out,) or (1,).
    """
    rows = rows.contiguous()
    n_out = codes.shape[0]
    product = rows.new_empty(rows.shape[0], n_out)
    _int8_rows[(triton.cdiv(n_out, OUTPUTS),)](
        rows, codes, scale, product,
        rows.shape[0], n_out, rows.shape[1], codes.stride(0), int(scale.numel() > 1),
        tile_rows=ROWS, tile_outputs=OUTPUTS, tile_columns=COLUMNS,
    )  # fmt: skip
    return product


def group_columns(group_size: int) -> int | None:
    """Columns of a step for a group of this size; None if none fits."""
    return next((width for width in GROUP_COLUMNS if group_size % width == 0), None)


def int4_rows(
    rows: Float[Tensor, "rows n_in"],
    packed: UInt8[Tensor, "n_out n_bytes"],
    scale: Float[Tensor, "n_out groups"],
    zero: UInt8[Tensor, "n_out groups"],
    group_size: int,
) -> Float[Tensor, "rows n_out"]:
    """Return rows @ ((codes − zero) * scale).T in the dtype of `rows`, summed in float32.

    Args:
        rows: at most 16, bfloat16 or float16.
        packed: two codes a byte, the even column's in its low half.
        group_size: one that `group_columns` has a width for.
    """
    rows = rows.contiguous()
    n_out = packed.shape[0]
    product = rows.new_empty(rows.shape[0], n_out)
    _int4_rows[(triton.cdiv(n_out, OUTPUTS),)](
        rows, packed, scale, zero, product,
        rows.shape[0], n_out, rows.shape[1], packed.stride(0), scale.shape[1], group_size,
        tile_rows=ROWS, tile_outputs=OUTPUTS, tile_columns=group_columns(group_size),
    )  # fmt: skip
    return product
