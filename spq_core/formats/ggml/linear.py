"""Linear and embedding layers that hold blocks of ggml's types, as a GGUF file has them.

They compute so that a model can be measured and compared; programs that run GGUF files have kernels of their own.
"""

from typing import Literal, Self

import torch
from jaxtyping import Float, Int, UInt8
from pydantic import model_validator
from torch import Tensor, nn

from spq_core.formats.ggml.coding import unpack, widened
from spq_core.formats.ggml.types import BlockType, BlockTypeName, block_type
from spq_core.formats.layer import (
    ALL,
    CompressedEmbedding,
    CompressedLayer,
    CompressedLinear,
    Layout,
    Positive,
    Size,
    constant,
    empty,
    scaled_rows,
)
from spq_core.formats.tiles import by_tiles


class _Blocked(Layout):
    type: BlockTypeName

    @property
    def block_type(self) -> BlockType:
        """What blocks look like."""
        return block_type(self.type)

    def _whole(self, columns: int) -> Self:
        if not self.block_type.fits(columns):
            raise ValueError(f"rows of {columns} columns are not whole blocks of {self.type}")
        return self

    def _empty(self, n_out: int, n_in: int) -> Tensor:
        return empty(n_out, self.block_type.row_bytes(n_in), dtype=torch.uint8)


class GgmlLayout(_Blocked):
    """GgmlLinear."""

    kind: Literal["ggml"] = "ggml"
    shared_parts = ("blocks",)
    n_in: Size
    n_out: Size
    bias: bool

    @model_validator(mode="after")
    def _blocks_fit(self) -> Self:
        return self._whole(self.n_in)

    @property
    def weight_bits(self) -> float:
        """Of codes, steps and offsets: a block is one thing."""
        return self.block_type.bits * self.n_in * self.n_out

    def build(self, dtype: torch.dtype) -> nn.Module:
        """An empty GgmlLinear."""
        bias = empty(self.n_out, dtype=dtype) if self.bias else None
        return GgmlLinear(self._empty(self.n_out, self.n_in), self.block_type, bias)


class GgmlEmbeddingLayout(_Blocked):
    """GgmlEmbedding."""

    kind: Literal["ggml_embedding"] = "ggml_embedding"
    n: Size
    dim: Size
    output_scale: Positive = 1.0

    @model_validator(mode="after")
    def _blocks_fit(self) -> Self:
        return self._whole(self.dim)

    def build(self, dtype: torch.dtype) -> nn.Module:
        """An empty GgmlEmbedding."""
        blocks = self._empty(self.n, self.dim)
        return GgmlEmbedding(blocks, self.block_type, dtype, self.output_scale)


class GgmlWeight(CompressedLayer):
    """Blocks of one type."""

    matrix = "blocks"

    def __init__(self, blocks: UInt8[Tensor, "n bytes"], kind: BlockType) -> None:
        super().__init__()
        self.blocks = nn.Parameter(blocks, requires_grad=False)
        self.kind = kind

    @property
    def n_in(self) -> int:
        """Number of columns."""
        return self.blocks.shape[1] // self.kind.bytes * self.kind.columns

    def dequantized(
        self, rows: slice | Int[Tensor, " k"] = slice(None)
    ) -> Float[Tensor, "rows n_in"]:
        """The weight in float32, or some of its rows."""
        return widened(self.kind, unpack(self.kind, self.blocks.data[rows]))

    def extra_repr(self) -> str:
        return f"{self.kind.name}, in={self.n_in}"


class GgmlLinear(GgmlWeight, CompressedLinear):
    """y = W x + bias, a tile of widened rows at a time."""

    def __init__(
        self,
        blocks: UInt8[Tensor, "out bytes"],
        kind: BlockType,
        bias: Float[Tensor, " out"] | None = None,
    ) -> None:
        super().__init__(blocks, kind)
        self.bias = constant(bias)

    @property
    def in_features(self) -> int:
        """Number of input columns."""
        return self.n_in

    @property
    def out_features(self) -> int:
        """Number of output rows."""
        return self.blocks.shape[0]

    def layout(self) -> GgmlLayout:
        """Its type and sizes."""
        return GgmlLayout(
            type=self.kind.name, n_in=self.n_in, n_out=self.out_features, bias=self.bias is not None
        )

    def float_weight(self, rows: slice = ALL) -> Float[Tensor, "rows n_in"]:
        """Widened codes."""
        return self.dequantized(rows)

    def forward(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        """Apply the layer in x's dtype."""
        return by_tiles(x, self.out_features, self.dequantized, self.bias)


class GgmlEmbedding(GgmlWeight, CompressedEmbedding):
    """Rows of blocks, widened when looked up."""

    def __init__(
        self,
        blocks: UInt8[Tensor, "n bytes"],
        kind: BlockType,
        dtype: torch.dtype,
        output_scale: float = 1.0,
    ) -> None:
        super().__init__(blocks, kind)
        self.output_scale = output_scale
        # An empty buffer follows `model.to(dtype)`, so the output dtype does too.
        self.register_buffer("dtype_anchor", torch.empty(0, dtype=dtype), persistent=False)
        self.dtype_anchor: Tensor

    def layout(self) -> GgmlEmbeddingLayout:
        """Its type and sizes."""
        return GgmlEmbeddingLayout(
            type=self.kind.name,
            n=self.blocks.shape[0],
            dim=self.n_in,
            output_scale=self.output_scale,
        )

    def tied_head(self, bias: Tensor | None = None) -> GgmlLinear:
        """The head widens the embedding's blocks."""
        head = GgmlLinear(self.blocks.data, self.kind, bias)
        head.blocks = self.blocks
        return head

    def forward(self, ids: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch dim"]:
        """Return the rows of `ids`."""
        rows = self.dequantized(ids.flatten()).view(*ids.shape, self.n_in)
        return scaled_rows(rows, self.output_scale, self.dtype_anchor.dtype)
