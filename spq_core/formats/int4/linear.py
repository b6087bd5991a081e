"""Linear and embedding layers that hold 4-bit codes in the order of the CPU's kernel.

They stand in a loaded model only: artifacts hold `packed_linear`'s order, which is the same on every
machine, and `stored` gives it back.
"""

from typing import NamedTuple

import torch
from jaxtyping import BFloat16, Float, Int, UInt8
from torch import Tensor, nn
from torch.nn import functional

from spq_core.formats.exact_parts import ExactParts
from spq_core.formats.int4.matmul import (
    MIDDLE,
    ROW_MULTIPLE,
    block_rows,
    from_blocks,
    int4_linear,
    kernel_group,
    rows_from_blocks,
    scale_and_zero,
    steps_of,
    to_blocks,
)
from spq_core.formats.int8.linear import scaled_rows
from spq_core.formats.packed.linear import PackedWeight, pack, unpack

BITS = 4
ROWS_AT_ONCE = 64 * ROW_MULTIPLE


class Shape(NamedTuple):
    """What does not follow from the tensors' sizes."""

    n_out: int
    n_in: int
    group_size: int
    """Of the stored form."""
    kernel_group: int
    rows: int
    """Of a block."""


class StoredParts(NamedTuple):
    """Tensors of `PackedWeight`."""

    packed: UInt8[Tensor, "n_out n_bytes"]
    scale: Float[Tensor, "n_out groups"]
    zero: UInt8[Tensor, "n_out groups"]


class Int4Weight(ExactParts):
    """Codes in blocks, and bfloat16 scales and offsets per group and row, rows filled up to 64."""

    exact = ("steps",)

    def __init__(
        self,
        blocks: UInt8[Tensor, "n_padded half"],
        steps: BFloat16[Tensor, "groups n_padded 2"],
        shape: Shape,
    ) -> None:
        super().__init__()
        self.blocks = nn.Parameter(blocks, requires_grad=False)
        self.steps = nn.Parameter(steps, requires_grad=False)
        self.shape = shape

    def dequantized(self) -> Float[Tensor, "n_out n_in"]:
        """The weight in float32."""
        shape = self.shape
        codes = from_blocks(self.blocks.data, shape.rows).float()
        scale, zero = scale_and_zero(self.steps.data)
        grouped = codes.view(len(codes), -1, shape.kernel_group)
        weight = (grouped - zero.T[..., None]) * scale.T[..., None]
        return weight.flatten(1)[: shape.n_out, : shape.n_in]

    def stored(self) -> StoredParts:
        """The tensors an artifact holds, exactly as they were loaded."""
        shape = self.shape
        codes = from_blocks(self.blocks.data.cpu(), shape.rows)[: shape.n_out, : shape.n_in]
        scale, zero = scale_and_zero(self.steps.data.cpu())
        # A stored group may be several of the kernel's.
        firsts = torch.arange(0, shape.n_in, shape.group_size) // shape.kernel_group
        per_row = (part[firsts, : shape.n_out].T.contiguous() for part in (scale, zero))
        stored_scale, stored_zero = per_row
        return StoredParts(
            pack(codes.contiguous(), BITS), stored_scale.half(), stored_zero.to(torch.uint8)
        )

    def extra_repr(self) -> str:
        return f"in={self.shape.n_in}, out={self.shape.n_out}, group_size={self.shape.group_size}"


class Int4Linear(Int4Weight):
    """y = x @ ((codes − zero) * scale).T + bias."""

    def __init__(
        self,
        blocks: UInt8[Tensor, "n_padded half"],
        steps: BFloat16[Tensor, "groups n_padded 2"],
        shape: Shape,
        bias: Float[Tensor, " n_out"] | None,
    ) -> None:
        super().__init__(blocks, steps, shape)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    @property
    def in_features(self) -> int:
        """Number of input columns."""
        return self.shape.n_in

    @property
    def out_features(self) -> int:
        """Number of output rows."""
        return self.shape.n_out

    def forward(self, x: Float[Tensor, "*batch n_in"]) -> Float[Tensor, "*batch n_out"]:
        """Apply the layer in x's dtype."""
        if x.shape[-1] != self.shape.n_in:
            raise ValueError(f"the input has {x.shape[-1]} columns, the layer {self.shape.n_in}")
        return int4_linear(
            x, self.blocks, self.steps, self.bias,
            n_out=self.shape.n_out, rows=self.shape.rows, group_size=self.shape.kernel_group,
        )  # fmt: skip


class Int4Embedding(Int4Weight):
    """Rows of codes, widened when looked up."""

    def __init__(
        self,
        blocks: UInt8[Tensor, "n_padded half"],
        steps: BFloat16[Tensor, "groups n_padded 2"],
        shape: Shape,
        dtype: torch.dtype,
        output_scale: float,
    ) -> None:
        super().__init__(blocks, steps, shape)
        self.output_scale = output_scale
        # An empty buffer follows `model.to(dtype)`, so the output dtype does too.
        self.register_buffer("dtype_anchor", torch.empty(0, dtype=dtype), persistent=False)
        self.dtype_anchor: Tensor

    def forward(self, ids: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch dim"]:
        """Return the rows of `ids`."""
        flat = ids.flatten()
        codes = rows_from_blocks(self.blocks.data, flat, self.shape.rows).float()
        scale, zero = scale_and_zero(self.steps.data[:, flat])
        grouped = codes.view(len(flat), -1, self.shape.kernel_group)
        rows = ((grouped - zero.T[..., None]) * scale.T[..., None]).flatten(1)[:, : self.shape.n_in]
        return scaled_rows(
            rows.view(*ids.shape, self.shape.n_in), self.output_scale, self.dtype_anchor.dtype
        )


def blocks_of(
    weight: PackedWeight,
) -> tuple[UInt8[Tensor, "n_padded half"], BFloat16[Tensor, "groups n_padded 2"], Shape] | None:
    """Put a packed weight in the kernel's order; None where the kernel cannot take it."""
    rows, group = block_rows(), kernel_group(weight.group_size)
    if weight.bits != BITS or rows is None or group is None or not _on_the_kernels_grid(weight):
        return None
    n_out = weight.packed.shape[0]
    more_rows, more_columns = -n_out % ROW_MULTIPLE, -weight.n_in % group
    columns = weight.n_in + more_columns
    blocks = weight.packed.data.new_empty(n_out + more_rows, columns // 2)
    # Some rows at a time: unpacked codes take twice the memory of the matrix.
    for start in range(0, n_out, ROWS_AT_ONCE):
        codes = unpack(weight.packed.data[start : start + ROWS_AT_ONCE], BITS, weight.n_in)
        missing = -len(codes) % ROW_MULTIPLE
        codes = functional.pad(codes, (0, more_columns, 0, missing), value=MIDDLE)
        blocks[start : start + len(codes)] = to_blocks(codes, rows)
    groups = torch.arange(0, columns, group) // weight.group_size
    scale = functional.pad(weight.scale.data[:, groups], (0, 0, 0, more_rows), value=1.0)
    zero = functional.pad(weight.zero.data[:, groups], (0, 0, 0, more_rows), value=MIDDLE)
    shape = Shape(n_out, weight.n_in, weight.group_size, group, rows)
    return blocks, steps_of(scale, zero), shape


def _on_the_kernels_grid(weight: PackedWeight) -> bool:
    """Whether scales and zero points survive the kernel's form; ours do, hand-made ones may not."""
    scale, zero = weight.scale.data, weight.zero.data
    exact = (scale.bfloat16().float() == scale.float()) & (scale > 0)
    return bool(exact.all() and (zero < 1 << BITS).all())
