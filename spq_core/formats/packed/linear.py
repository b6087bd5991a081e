"""Linear and embedding layers that hold codes of 8, 4 or 3 bits, packed without gaps.

Widening them is left to tiles of a few hundred rows, so no floating-point copy of a whole matrix exists.
"""

from typing import Any, Literal, Self

import torch
from jaxtyping import Float, Int, UInt8
from pydantic import model_validator
from torch import Tensor, nn
from torch.nn import functional

from spq_core.formats import cuda_decode
from spq_core.formats.int4.linear import (
    Int4Embedding,
    Int4Linear,
    Int4Weight,
    Shape,
    blocks_of,
)
from spq_core.formats.int8.linear import Int8Embedding, Int8Linear
from spq_core.formats.int8.matmul import pad_columns
from spq_core.formats.layer import (
    ALL,
    CompressedEmbedding,
    CompressedLayer,
    CompressedLinear,
    Layout,
    Positive,
    Size,
    StoredParts,
    constant,
    empty,
    scaled_rows,
)
from spq_core.formats.packed.bits import Bits
from spq_core.formats.packing import (
    CODES_PER_PACK,
    HALF_BYTE,
    WHOLE_BYTE,
    PackedParts,
    unpack,
)
from spq_core.formats.tiles import by_tiles

SIGN = -128
"""Unsigned codes become signed ones by turning their highest bit."""


class _Groups(Layout):
    """Codes of `bits` bits, one scale and zero point per row and `group_size` columns."""

    computes_otherwise = True
    bits: Bits
    group_size: Size

    def _within(self, columns: int) -> Self:
        """Refuse groups wider than a row: widening one would take memory that no file paid for."""
        if self.group_size > columns:
            raise ValueError(f"group_size {self.group_size} is above {columns} columns")
        return self

    def _empty(self, n_out: int, n_in: int) -> PackedParts:
        packs, groups = -(-n_in // CODES_PER_PACK), -(-n_in // self.group_size)
        return PackedParts(
            empty(n_out, packs * self.bits, dtype=torch.uint8),
            empty(n_out, groups, dtype=torch.float16),
            empty(n_out, groups, dtype=torch.uint8),
        )


class PackedLayout(_Groups):
    """PackedLinear."""

    kind: Literal["packed"] = "packed"
    shared_parts = ("packed", "scale", "zero")
    n_in: Size
    n_out: Size
    bias: bool

    @model_validator(mode="after")
    def _groups_fit(self) -> Self:
        return self._within(self.n_in)

    @property
    def weight_bits(self) -> float:
        """Of codes."""
        return float(self.bits * self.n_in * self.n_out)

    def build(self, dtype: torch.dtype) -> nn.Module:
        """An empty PackedLinear."""
        bias = empty(self.n_out, dtype=dtype) if self.bias else None
        return PackedLinear(
            *self._empty(self.n_out, self.n_in), bias,
            bits=self.bits, n_in=self.n_in, group_size=self.group_size,
        )  # fmt: skip

    def stored(self, layer: Any) -> StoredParts:
        """Codes, scales and zero points as they were read."""
        return StoredParts(self, _parts_of(layer, self.n_in)._asdict())


class PackedEmbeddingLayout(_Groups):
    """PackedEmbedding."""

    kind: Literal["packed_embedding"] = "packed_embedding"
    n: Size
    dim: Size
    output_scale: Positive = 1.0

    @model_validator(mode="after")
    def _groups_fit(self) -> Self:
        return self._within(self.dim)

    def build(self, dtype: torch.dtype) -> nn.Module:
        """An empty PackedEmbedding."""
        return PackedEmbedding(
            *self._empty(self.n, self.dim), dtype,
            bits=self.bits, n_in=self.dim, group_size=self.group_size,
            output_scale=self.output_scale,
        )  # fmt: skip

    def stored(self, layer: Any) -> StoredParts:
        """Codes, scales and zero points as they were read."""
        return StoredParts(self, _parts_of(layer, self.dim)._asdict())


def _parts_of(layer: CompressedLayer, n_in: int) -> PackedParts:
    """Of a layer in the form that computes, or of one that was loaded as it is."""
    if isinstance(layer, Int4Weight):
        return layer.stored()
    if isinstance(layer, PackedWeight):
        return PackedParts(layer.packed.data, layer.scale.data, layer.zero.data)
    if not isinstance(layer, Int8Embedding | Int8Linear):
        raise TypeError(f"a {type(layer).__name__} was not loaded from packed codes")
    codes = (layer.codes.data[:, :n_in] ^ SIGN).view(torch.uint8)
    scale = layer.scale.data[:, None].half()
    return PackedParts(
        functional.pad(codes, (0, -n_in % CODES_PER_PACK)),
        scale,
        torch.full_like(scale, -SIGN, dtype=torch.uint8),
    )


class PackedWeight(CompressedLayer):
    """Packed codes, float16 scales and 8-bit zero points per row and group of columns."""

    exact = ("scale",)
    matrix = "packed"

    def __init__(
        self,
        packed: UInt8[Tensor, "out n_bytes"],
        scale: Float[Tensor, "out groups"],
        zero: UInt8[Tensor, "out groups"],
        *,
        bits: int,
        n_in: int,
        group_size: int,
    ) -> None:
        super().__init__()
        self.packed = nn.Parameter(packed, requires_grad=False)
        self.scale = nn.Parameter(scale, requires_grad=False)
        self.zero = nn.Parameter(zero, requires_grad=False)
        self.bits, self.n_in, self.group_size = bits, n_in, group_size

    def dequantized(
        self, rows: slice | Int[Tensor, " k"] = slice(None)
    ) -> Float[Tensor, "rows n_in"]:
        """The weight in float32, or some of its rows."""
        codes = unpack(self.packed.data[rows], self.bits, self.n_in).float()
        scale, zero = self.scale.data[rows].float(), self.zero.data[rows].float()
        missing = -self.n_in % self.group_size
        grouped = functional.pad(codes, (0, missing)).view(codes.shape[0], -1, self.group_size)
        return ((grouped - zero[..., None]) * scale[..., None]).flatten(1)[:, : self.n_in]

    def _blocks(self) -> tuple[Tensor, Tensor, Shape] | None:
        """In the order of the CPU's kernel; None where there is none for it."""
        if self.bits != HALF_BYTE or self.packed.device.type != "cpu":
            return None
        parts = PackedParts(self.packed.data, self.scale.data, self.zero.data)
        return blocks_of(parts, self.n_in, self.group_size)

    def _signed(self) -> tuple[Tensor, Tensor] | None:
        """Signed codes and scales, where 8-bit codes lie around a middle with one scale a row."""
        on_cpu = self.packed.device.type == "cpu"
        if self.bits != WHOLE_BYTE or not on_cpu or self.scale.shape[1] != 1:
            return None
        if bool((self.zero.data != -SIGN).any()):
            return None
        codes = self.packed.data[:, : self.n_in].view(torch.int8) ^ SIGN
        return codes, self.scale.data[:, 0].float()

    def extra_repr(self) -> str:
        return f"bits={self.bits}, in={self.n_in}, group_size={self.group_size}"


class PackedLinear(PackedWeight, CompressedLinear):
    """y = x @ ((codes − zero) * scale).T + bias, a tile of weight rows at a time."""

    def __init__(
        self,
        packed: UInt8[Tensor, "out n_bytes"],
        scale: Float[Tensor, "out groups"],
        zero: UInt8[Tensor, "out groups"],
        bias: Float[Tensor, " out"] | None = None,
        *,
        bits: int,
        n_in: int,
        group_size: int,
    ) -> None:
        super().__init__(packed, scale, zero, bits=bits, n_in=n_in, group_size=group_size)
        self.bias = constant(bias)

    @property
    def in_features(self) -> int:
        """Number of input columns."""
        return self.n_in

    @property
    def out_features(self) -> int:
        """Number of output rows."""
        return self.packed.shape[0]

    def layout(self) -> PackedLayout:
        """Its sizes."""
        return PackedLayout(
            n_in=self.n_in, n_out=self.out_features, bias=self.bias is not None, bits=self.bits,
            group_size=self.group_size,
        )  # fmt: skip

    def float_weight(self, rows: slice = ALL) -> Float[Tensor, "rows n_in"]:
        """Widened codes."""
        return self.dequantized(rows)

    def to_runtime(self) -> CompressedLinear:
        """A layer of 4 or 8 bits, where the CPU has a kernel for these codes."""
        bias = None if self.bias is None else self.bias.data
        if (signed := self._signed()) is not None:
            codes, scale = signed
            return Int8Linear(pad_columns(codes), scale, bias, in_features=self.n_in)
        blocks = self._blocks()
        return self if blocks is None else Int4Linear(*blocks, bias)

    def forward(self, x: Float[Tensor, "*batch n_in"]) -> Float[Tensor, "*batch n_out"]:
        """Apply the layer in x's dtype."""
        n_out = self.out_features
        flat = x.reshape(-1, x.shape[-1])
        if self._decodes(flat):
            made = cuda_decode.int4_rows(flat, self.packed, self.scale, self.zero, self.group_size)
            product = made.view(*x.shape[:-1], n_out)
            return product if self.bias is None else product + self.bias.to(product.dtype)
        return by_tiles(x, n_out, self.dequantized, self.bias)

    def _decodes(self, rows: Tensor) -> bool:
        """Whether the kernel for few rows on a GPU can take the call."""
        inference = not (torch.is_grad_enabled() and rows.requires_grad)
        known = self.bits == HALF_BYTE and cuda_decode.group_columns(self.group_size) is not None
        return known and inference and cuda_decode.takes(rows)


class PackedEmbedding(PackedWeight, CompressedEmbedding):
    """Rows of packed codes, widened when looked up."""

    def __init__(
        self,
        packed: UInt8[Tensor, "n n_bytes"],
        scale: Float[Tensor, "n groups"],
        zero: UInt8[Tensor, "n groups"],
        dtype: torch.dtype,
        *,
        bits: int,
        n_in: int,
        group_size: int,
        output_scale: float = 1.0,
    ) -> None:
        super().__init__(packed, scale, zero, bits=bits, n_in=n_in, group_size=group_size)
        self.output_scale = output_scale
        # An empty buffer follows `model.to(dtype)`, so the output dtype does too.
        self.register_buffer("dtype_anchor", torch.empty(0, dtype=dtype), persistent=False)
        self.dtype_anchor: Tensor

    def layout(self) -> PackedEmbeddingLayout:
        """Its sizes."""
        return PackedEmbeddingLayout(
            n=self.packed.shape[0], dim=self.n_in, output_scale=self.output_scale, bits=self.bits,
            group_size=self.group_size,
        )  # fmt: skip

    def to_runtime(self) -> CompressedEmbedding:
        """A table of 4 or 8 bits, where the CPU has a kernel for a head tied to it."""
        dtype = self.dtype_anchor.dtype
        if (signed := self._signed()) is not None:
            return Int8Embedding(*signed, dtype, output_scale=self.output_scale)
        blocks = self._blocks()
        return self if blocks is None else Int4Embedding(*blocks, dtype, self.output_scale)

    def tied_head(self, bias: Tensor | None = None) -> PackedLinear:
        """The head widens the embedding's codes."""
        head = PackedLinear(
            self.packed.data, self.scale.data, self.zero.data, bias,
            bits=self.bits, n_in=self.n_in, group_size=self.group_size,
        )  # fmt: skip
        head.packed, head.scale, head.zero = self.packed, self.scale, self.zero
        return head

    def forward(self, ids: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch dim"]:
        """Return the rows of `ids`."""
        rows = self.dequantized(ids.flatten()).view(*ids.shape, self.n_in)
        return scaled_rows(rows, self.output_scale, self.dtype_anchor.dtype)
