"""Layers of lattice codes that DEFLATE stores, as artifacts before the range coder have them. They are read, and written no more."""

from typing import Any, Literal

import torch
from jaxtyping import Int8
from torch import Tensor, nn

from spq_core.formats.deflated.coding import Deflated, Order, decode
from spq_core.formats.lattice.layers import CodedEmbedding, CodedLayout, CodedLinear, codes_of
from spq_core.formats.lattice.steps import Steps
from spq_core.formats.layer import Positive, Size, StoredParts, empty
from spq_core.formats.range_coded.coding import encode
from spq_core.formats.range_coded.linear import RangeCodedEmbeddingLayout, RangeCodedLayout
from spq_core.formats.range_coded.trellis import SCALAR


class _Bytes(CodedLayout):
    order: Order

    def _empty(self) -> Deflated:
        return Deflated(empty(self.n_bytes, dtype=torch.uint8), self.base, self.order)


class DeflatedLayout(_Bytes):
    """DeflatedLinear: `n_bytes` bytes that decode to codes on a lattice."""

    kind: Literal["coded"] = "coded"
    shared_parts = ("packed",)
    n_in: Size
    n_out: Size
    bias: bool

    def build(self, dtype: torch.dtype) -> nn.Module:
        """An empty DeflatedLinear."""
        bias = empty(self.n_out, dtype=dtype) if self.bias else None
        return DeflatedLinear(self._empty(), self.n_out, self.n_in, bias)

    def stored(self, layer: Any) -> StoredParts:
        """The same codes by range coding."""
        coded = encode(*codes_of(layer, self.base))
        layout = RangeCodedLayout(
            n_in=self.n_in, n_out=self.n_out, bias=self.bias,
            n_bytes=coded.packed.numel(), base=self.base, states=SCALAR,
        )  # fmt: skip
        return StoredParts(layout, {"packed": coded.packed})


class DeflatedEmbeddingLayout(_Bytes):
    """DeflatedEmbedding."""

    kind: Literal["coded_embedding"] = "coded_embedding"
    n: Size
    dim: Size
    output_scale: Positive = 1.0

    def build(self, dtype: torch.dtype) -> nn.Module:
        """An empty DeflatedEmbedding."""
        return DeflatedEmbedding(self._empty(), self.n, self.dim, dtype, self.output_scale)

    def stored(self, layer: Any) -> StoredParts:
        """The same codes by range coding."""
        coded = encode(*codes_of(layer, self.base))
        layout = RangeCodedEmbeddingLayout(
            n=self.n, dim=self.dim, output_scale=self.output_scale,
            n_bytes=coded.packed.numel(), base=self.base, states=SCALAR,
        )  # fmt: skip
        return StoredParts(layout, {"packed": coded.packed})


class DeflatedLinear(CodedLinear):
    """A linear layer as it is stored."""

    def __init__(self, coded: Deflated, n_out: int, n_in: int, bias: Tensor | None) -> None:
        super().__init__(coded.packed, n_out, n_in, bias)
        self.base, self.order = coded.base, coded.order

    def layout(self) -> DeflatedLayout:
        """Its sizes, and how its bytes are read."""
        return DeflatedLayout(
            n_in=self.n_in, n_out=self.n_out, bias=self.bias is not None,
            n_bytes=self.packed.numel(), base=self.base, order=self.order,
        )  # fmt: skip

    def decoded(self) -> tuple[Int8[Tensor, "out n_in"], Steps]:
        """Codes and steps."""
        return decode(Deflated(self.packed.data, self.base, self.order), self.n_out, self.n_in)


class DeflatedEmbedding(CodedEmbedding):
    """An embedding as it is stored."""

    def __init__(
        self, coded: Deflated, n: int, dim: int, dtype: torch.dtype, output_scale: float = 1.0
    ) -> None:
        super().__init__(coded.packed, n, dim, dtype, output_scale)
        self.base, self.order = coded.base, coded.order

    def layout(self) -> DeflatedEmbeddingLayout:
        """Its sizes, and how its bytes are read."""
        return DeflatedEmbeddingLayout(
            n=self.n_out, dim=self.n_in, output_scale=self.output_scale,
            n_bytes=self.packed.numel(), base=self.base, order=self.order,
        )  # fmt: skip

    def decoded(self) -> tuple[Int8[Tensor, "out n_in"], Steps]:
        """Codes and steps."""
        return decode(Deflated(self.packed.data, self.base, self.order), self.n_out, self.n_in)

    def _head(self, bias: Tensor | None) -> CodedLinear:
        coded = Deflated(self.packed.data, self.base, self.order)
        return DeflatedLinear(coded, self.n_out, self.n_in, bias)
