"""Multiply activations by 8-bit weights without a floating-point copy of the matrix.

Two routes, chosen per call by the number of activation rows:

* few rows (decoding): torch's packed weight-only kernel, which reads one byte a weight. Found by
  trial on torch 2.13: it drops the last columns unless their number is a multiple of 16, and it
  crashes on codes that are not aligned to 16 bytes or activations not aligned to 64. So codes are
  stored with padded columns, and calls it cannot take go the other route;
* many rows (prefill): tiles of a few hundred weight rows are widened into a reused scratch and
  multiplied by the dense kernel, so at most one tile exists in floating point.

On CUDA few rows go through `cuda_decode`, and many through one tile; those lines have not run on a GPU yet.

Under torch.compile, and where a gradient is asked for, the product is one operator of torch's library,
`spq::int8_linear`; its gradient reaches activations, never codes.
"""

from functools import cache
from typing import Any

import torch
from jaxtyping import Float, Int8
from torch import Tensor
from torch.nn import functional

from spq_core.formats import cuda_decode
from spq_core.formats.product_dtype import product_dtype

DECODE_ROWS = 16
"""Up to this many activation rows the packed kernel beats widening (measured on AVX2, AVX-512)."""
TILE_BYTES = 4 << 20
"""Scratch size of one widened tile: small enough to stay in the last-level cache."""
COLUMN_MULTIPLE = 16
CODE_ALIGNMENT = 16
ACTIVATION_ALIGNMENT = 64


def pad_columns(codes: Int8[Tensor, "n_out n_in"]) -> Int8[Tensor, "n_out n_padded"]:
    """Append zero columns up to the next multiple of 16."""
    missing = -codes.shape[1] % COLUMN_MULTIPLE
    return functional.pad(codes, (0, missing)) if missing else codes


def is_aligned(codes: Tensor) -> bool:
    """Whether the packed kernel may read these codes."""
    return codes.data_ptr() % CODE_ALIGNMENT == 0 and codes.shape[1] % COLUMN_MULTIPLE == 0


def int8_linear(
    x: Float[Tensor, "*batch n_in"],
    codes: Int8[Tensor, "n_out n_padded"],
    scale: Float[Tensor, " n_scales"],
    bias: Float[Tensor, " n_out"] | None = None,
    input_scale: Float[Tensor, " n_in"] | None = None,
) -> Float[Tensor, "*batch n_out"]:
    """Return (x * input_scale) @ (codes * scale).T + bias in x's dtype.

    The kernel for few rows rounds what enters it, scales included, to bfloat16. Many rows are multiplied in bfloat16 where the
    processor does that natively, else in float32 (see `product_dtype`), and rounded once.

    Shapes:
        codes: n_padded ≥ n_in; columns from n_in on are zero.
        scale: (n_out,) for one scale per output row, (1,) for one per matrix.
    """
    if torch.compiler.is_compiling() or (torch.is_grad_enabled() and x.requires_grad):
        product: Tensor = _operator(x, codes, scale, bias, input_scale)
        return product
    return _product(x, codes, scale, bias, input_scale)


def _product(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    input_scale: Tensor | None,
) -> Tensor:
    rows = x.reshape(-1, x.shape[-1])
    decoding = rows.shape[0] <= DECODE_ROWS and x.device.type == "cpu"
    if decoding and is_aligned(codes) and packed_kernel_works():
        scaled = _packed(rows, codes, scale, input_scale).to(x.dtype)
    elif cuda_decode.takes(entering := _scaled_inputs(rows, input_scale)):
        scaled = cuda_decode.int8_rows(entering, codes, scale)
    else:
        product = _tiled(entering, codes)
        scaled = product.mul_(scale.to(product.dtype)).to(x.dtype)
    if bias is not None:
        scaled = scaled + bias.to(scaled.dtype)
    return scaled.view(*x.shape[:-1], codes.shape[0])


_operator = torch.library.custom_op("spq::int8_linear", _product, mutates_args=())


@_operator.register_fake
def _shape_of(x: Tensor, codes: Tensor, *_: Tensor | None) -> Tensor:
    return x.new_empty(*x.shape[:-1], codes.shape[0])


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    del output
    x, codes, scale, _, input_scale = inputs
    ctx.save_for_backward(codes, scale, input_scale)
    ctx.n_in = x.shape[-1]


def _gradient(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    """Towards the activations: ((gradient * scale) @ codes) * input_scale, in float32.

    Towards the bias: the gradient's sum.
    """
    codes, scale, input_scale = ctx.saved_tensors
    rows = gradient.reshape(-1, gradient.shape[-1]).float() * scale
    codes = codes[:, : ctx.n_in]
    summed = rows.new_zeros(rows.shape[0], ctx.n_in)
    tile = max(64, TILE_BYTES // (4 * ctx.n_in))
    for start in range(0, codes.shape[0], tile):
        some = slice(start, start + tile)
        summed.addmm_(rows[:, some], codes[some].float())
    if input_scale is not None:
        summed *= input_scale
    at_input = summed.to(gradient.dtype).view(*gradient.shape[:-1], ctx.n_in)
    at_bias = None
    if ctx.needs_input_grad[3]:
        at_bias = gradient.reshape(-1, gradient.shape[-1]).sum(0)
    return at_input, None, None, at_bias, None


_operator.register_autograd(_gradient, setup_context=_remember)


def _scaled_inputs(rows: Tensor, input_scale: Tensor | None) -> Tensor:
    """Activations times their scales, in the dtype of the product."""
    if input_scale is None:
        return rows
    dtype = product_dtype(rows)
    return rows.to(dtype) * input_scale.to(dtype)


@cache
def packed_kernel_works() -> bool:
    """Whether torch's packed kernel exists here and computes what it should."""
    if not hasattr(torch, "_weight_int8pack_mm"):
        return False
    codes = (torch.arange(32 * 64, dtype=torch.int32) % 255 - 127).to(torch.int8).view(32, 64)
    rows = ((torch.arange(64, dtype=torch.float32) % 7) - 3).view(1, 64)
    expected = rows @ codes.float().T
    return torch.allclose(
        _packed(rows, codes, torch.ones(32)).float(), expected, rtol=1e-2, atol=1.0
    )


def _packed(
    rows: Tensor, codes: Tensor, scale: Tensor, input_scale: Tensor | None = None
) -> Tensor:
    """The product through the weight-only kernel; its fast path takes bfloat16 only.

    Decoding is many small products, so each operation around them counts.
    """
    narrow = rows.to(torch.bfloat16)
    if input_scale is not None:
        narrow = narrow * input_scale.to(torch.bfloat16)
    if codes.shape[1] != rows.shape[1]:
        narrow = functional.pad(narrow, (0, codes.shape[1] - rows.shape[1]))
    if narrow.data_ptr() % ACTIVATION_ALIGNMENT or not narrow.is_contiguous():
        narrow = narrow.clone(memory_format=torch.contiguous_format)
    narrow_scale = scale.to(torch.bfloat16)
    if narrow_scale.numel() == 1:
        narrow_scale = narrow_scale.expand(codes.shape[0]).contiguous()
    product: Tensor = torch._weight_int8pack_mm(narrow, codes, narrow_scale)  # noqa: SLF001
    return product


def _tiled(rows: Tensor, codes: Tensor) -> Tensor:
    """Rows @ codes.T, widening a tile of weight rows at a time."""
    rows = rows.to(product_dtype(rows))
    n_out, n_in = codes.shape[0], rows.shape[1]
    codes = codes[:, :n_in]
    tile = (
        n_out if rows.device.type != "cpu" else max(64, TILE_BYTES // (n_in * rows.element_size()))
    )
    if tile >= n_out:
        return rows @ codes.to(rows.dtype).T
    product = rows.new_empty(rows.shape[0], n_out)
    scratch = rows.new_empty(tile, n_in)
    for start in range(0, n_out, tile):
        stop = min(start + tile, n_out)
        weights = scratch[: stop - start].copy_(codes[start:stop])
        product[:, start:stop] = rows @ weights.T
    return product
