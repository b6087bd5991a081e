"""Layers of lattice codes that are stored by range coding: before they are written, as they are stored, and how they compute."""

from typing import Any, Literal

import torch
from jaxtyping import Int8
from torch import Tensor, nn

from spq_core.formats.int8.linear import Int8Embedding, Int8Linear
from spq_core.formats.int8.matmul import pad_columns
from spq_core.formats.lattice.layers import CodedEmbedding, CodedLayout, CodedLinear, codes_of
from spq_core.formats.lattice.steps import Steps
from spq_core.formats.layer import Positive, Size, StoredParts, empty
from spq_core.formats.range_coded.coding import RangeCoded, decode, encode

States = Literal[1, 8, 16, 32, 64]


class _Bytes(CodedLayout):
    states: States
    """Of the trellis that the codes follow; 1 where each is free."""

    def _empty(self) -> RangeCoded:
        return RangeCoded(empty(self.n_bytes, dtype=torch.uint8), self.base, self.states)

    def stored(self, layer: Any) -> StoredParts:
        """The same codes, encoded again."""
        coded = encode(*codes_of(layer, self.base), self.states)
        update = {"n_bytes": coded.packed.numel()}
        return StoredParts(self.model_copy(update=update), {"packed": coded.packed})


class RangeCodedLayout(_Bytes):
    """RangeCodedLinear: `n_bytes` bytes that decode to codes on a lattice."""

    kind: Literal["range_coded"] = "range_coded"
    shared_parts = ("packed",)
    n_in: Size
    n_out: Size
    bias: bool

    def build(self, dtype: torch.dtype) -> nn.Module:
        """An empty RangeCodedLinear."""
        bias = empty(self.n_out, dtype=dtype) if self.bias else None
        return RangeCodedLinear(self._empty(), self.n_out, self.n_in, bias)


class RangeCodedEmbeddingLayout(_Bytes):
    """RangeCodedEmbedding."""

    kind: Literal["range_coded_embedding"] = "range_coded_embedding"
    n: Size
    dim: Size
    output_scale: Positive = 1.0

    def build(self, dtype: torch.dtype) -> nn.Module:
        """An empty RangeCodedEmbedding."""
        return RangeCodedEmbedding(self._empty(), self.n, self.dim, dtype, self.output_scale)


class RangeCodedLinear(CodedLinear):
    """A linear layer as it is stored."""

    def __init__(self, coded: RangeCoded, n_out: int, n_in: int, bias: Tensor | None) -> None:
        super().__init__(coded.packed, n_out, n_in, bias)
        self.base, self.states = coded.base, coded.states

    def layout(self) -> RangeCodedLayout:
        """Its sizes, and how its bytes are read."""
        return RangeCodedLayout(
            n_in=self.n_in, n_out=self.n_out, bias=self.bias is not None,
            n_bytes=self.packed.numel(), base=self.base, states=self.states,
        )  # fmt: skip

    def decoded(self) -> tuple[Int8[Tensor, "out n_in"], Steps]:
        """Codes and steps."""
        return decode(RangeCoded(self.packed.data, self.base, self.states), self.n_out, self.n_in)


class RangeCodedEmbedding(CodedEmbedding):
    """An embedding as it is stored."""

    def __init__(
        self, coded: RangeCoded, n: int, dim: int, dtype: torch.dtype, output_scale: float = 1.0
    ) -> None:
        super().__init__(coded.packed, n, dim, dtype, output_scale)
        self.base, self.states = coded.base, coded.states

    def layout(self) -> RangeCodedEmbeddingLayout:
        """Its sizes, and how its bytes are read."""
        return RangeCodedEmbeddingLayout(
            n=self.n_out, dim=self.n_in, output_scale=self.output_scale,
            n_bytes=self.packed.numel(), base=self.base, states=self.states,
        )  # fmt: skip

    def decoded(self) -> tuple[Int8[Tensor, "out n_in"], Steps]:
        """Codes and steps."""
        return decode(RangeCoded(self.packed.data, self.base, self.states), self.n_out, self.n_in)

    def _head(self, bias: Tensor | None) -> CodedLinear:
        coded = RangeCoded(self.packed.data, self.base, self.states)
        return RangeCodedLinear(coded, self.n_out, self.n_in, bias)


class LatticeLinear(Int8Linear):
    """An 8-bit layer of lattice codes, with the form it will be stored in."""

    def __init__(
        self, codes: Int8[Tensor, "out n_in"], steps: Steps, bias: Tensor | None, coded: RangeCoded
    ) -> None:
        super().__init__(
            pad_columns(codes), steps.row_steps, bias,
            in_features=codes.shape[1], input_scale=steps.column_steps,
        )  # fmt: skip
        self.coded = coded

    def to_stored(self) -> CodedLinear:
        """Its coded twin."""
        bias = None if self.bias is None else self.bias.data
        return RangeCodedLinear(self.coded, self.out_features, self.in_features, bias)


class LatticeEmbedding(Int8Embedding):
    """An 8-bit embedding of lattice codes, with the form it will be stored in."""

    def __init__(
        self,
        codes: Int8[Tensor, "n dim"],
        steps: Steps,
        dtype: torch.dtype,
        coded: RangeCoded,
        output_scale: float,
    ) -> None:
        super().__init__(
            codes, steps.row_steps, dtype,
            output_scale=output_scale, input_scale=steps.column_steps,
        )  # fmt: skip
        self.coded = coded

    def to_stored(self) -> CodedEmbedding:
        """Its coded twin."""
        n, dim = self.codes.shape
        dtype = self.dtype_anchor.dtype
        return RangeCodedEmbedding(self.coded, n, dim, dtype, self.output_scale)
