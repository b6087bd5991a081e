"""Linear and embedding layers that hold 4-bit codes in the order of the CPU's kernel.

They stand in a loaded model only: artifacts hold the order of `packed`, which is the same on every
machine, and `stored` gives it back.
"""

from typing import NamedTuple

import torch
from jaxtyping import BFloat16, Float, Int, UInt8
from torch import Tensor, nn
from torch.nn import functional

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
from spq_core.formats.layer import (
    ALL,
    CompressedEmbedding,
    CompressedLayer,
    CompressedLinear,
    constant,
    scaled_rows,
)
from spq_core.formats.packing import PackedParts, pack, unpack

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


class Int4Weight(CompressedLayer):
    """Codes in blocks, and bfloat16 scales and offsets per group and row, rows filled up to 64."""

    exact = ("steps",)
    matrix = "blocks"

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

    def stored(self) -> PackedParts:
        """The tensors an artifact holds, exactly as they were loaded."""
        shape = self.shape
        codes = from_blocks(self.blocks.data.cpu(), shape.rows)[: shape.n_out, : shape.n_in]
        scale, zero = scale_and_zero(self.steps.data.cpu())
        # A stored group may be several of the kernel's.
        firsts = torch.arange(0, shape.n_in, shape.group_size) // shape.kernel_group
        per_row = (part[firsts, : shape.n_out].T.contiguous() for part in (scale, zero))
        stored_scale, stored_zero = per_row
        return PackedParts(
            pack(codes.contiguous(), BITS), stored_scale.half(), stored_zero.to(torch.uint8)
        )

    def extra_repr(self) -> str:
        return f"in={self.shape.n_in}, out={self.shape.n_out}, group_size={self.shape.group_size}"


class Int4Linear(Int4Weight, CompressedLinear):
    """y = x @ ((codes − zero) * scale).T + bias."""

    def __init__(
        self,
        blocks: UInt8[Tensor, "n_padded half"],
        steps: BFloat16[Tensor, "groups n_padded 2"],
        shape: Shape,
        bias: Float[Tensor, " n_out"] | None,
    ) -> None:
        super().__init__(blocks, steps, shape)
        self.bias = constant(bias)

    @property
    def in_features(self) -> int:
        """Number of input columns."""
        return self.shape.n_in

    @property
    def out_features(self) -> int:
        """Number of output rows."""
        return self.shape.n_out

    def float_weight(self, rows: slice = ALL) -> Float[Tensor, "rows n_in"]:
        """Widened codes."""
        return self.dequantized()[rows]

    def forward(self, x: Float[Tensor, "*batch n_in"]) -> Float[Tensor, "*batch n_out"]:
        """Apply the layer in x's dtype."""
        if x.shape[-1] != self.shape.n_in:
            raise ValueError(f"the input has {x.shape[-1]} columns, the layer {self.shape.n_in}")
        return int4_linear(
            x, self.blocks, self.steps, self.bias,
            n_out=self.shape.n_out, rows=self.shape.rows, group_size=self.shape.kernel_group,
        )  # fmt: skip


class Int4Embedding(Int4Weight, CompressedEmbedding):
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

    def tied_head(self, bias: Tensor | None = None) -> Int4Linear:
        """The head multiplies with the embedding's blocks."""
        head = Int4Linear(self.blocks.data, self.steps.data, self.shape, bias)
        head.blocks, head.steps = self.blocks, self.steps
        return head

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
    parts: PackedParts, n_in: int, group_size: int
) -> tuple[UInt8[Tensor, "n_padded half"], BFloat16[Tensor, "groups n_padded 2"], Shape] | None:
    """Put packed 4-bit codes in the kernel's order; None where the kernel cannot take them."""
    rows, group = block_rows(), kernel_group(group_size)
    if rows is None or group is None or not _on_the_kernels_grid(parts):
        return None
    n_out = len(parts.packed)
    more_rows, more_columns = -n_out % ROW_MULTIPLE, -n_in % group
    columns = n_in + more_columns
    blocks = parts.packed.new_empty(n_out + more_rows, columns // 2)
    # Some rows at a time: unpacked codes take twice the memory of the matrix.
    for start in range(0, n_out, ROWS_AT_ONCE):
        codes = unpack(parts.packed[start : start + ROWS_AT_ONCE], BITS, n_in)
        missing = -len(codes) % ROW_MULTIPLE
        codes = functional.pad(codes, (0, more_columns, 0, missing), value=MIDDLE)
        blocks[start : start + len(codes)] = to_blocks(codes, rows)
    groups = torch.arange(0, columns, group) // group_size
    scale = functional.pad(parts.scale[:, groups], (0, 0, 0, more_rows), value=1.0)
    zero = functional.pad(parts.zero[:, groups], (0, 0, 0, more_rows), value=MIDDLE)
    return blocks, steps_of(scale, zero), Shape(n_out, n_in, group_size, group, rows)


def _on_the_kernels_grid(parts: PackedParts) -> bool:
    """Whether scales and zero points survive the kernel's form; ours do, hand-made ones may not."""
    exact = (parts.scale.bfloat16().float() == parts.scale.float()) & (parts.scale > 0)
    return bool(exact.all() and (parts.zero < 1 << BITS).all())
