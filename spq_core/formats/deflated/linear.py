"""Layers of lattice codes that DEFLATE stores, as artifacts before the range coder have them. They are read, and written no more."""

from typing import Any, Literal

import torch
from torch import nn

from spq_core.formats.deflated.coding import Deflated, Order
from spq_core.formats.lattice.layers import (
    CodedEmbedding,
    CodedEmbeddingLayout,
    CodedLinear,
    CodedLinearLayout,
)
from spq_core.formats.layer import StoredParts
from spq_core.formats.range_coded.linear import (
    RangeCodedEmbeddingLayout,
    RangeCodedLayout,
    stored_again,
)
from spq_core.formats.range_coded.trellis import SCALAR

ONLY_HERE = {"kind", "order"}


class DeflatedLayout(CodedLinearLayout):
    """DeflatedLinear: `n_bytes` bytes that decode to codes on a lattice."""

    kind: Literal["coded"] = "coded"
    order: Order

    def build(self, dtype: torch.dtype) -> nn.Module:
        """An empty DeflatedLinear."""
        return self.made(DeflatedLinear, Deflated(self.no_bytes, self.base, self.order), dtype)

    def stored(self, layer: Any) -> StoredParts:
        """The same codes by range coding."""
        sizes = self.model_dump(exclude=ONLY_HERE)
        return stored_again(RangeCodedLayout(**sizes, states=SCALAR), layer)


class DeflatedEmbeddingLayout(CodedEmbeddingLayout):
    """DeflatedEmbedding."""

    kind: Literal["coded_embedding"] = "coded_embedding"
    order: Order

    def build(self, dtype: torch.dtype) -> nn.Module:
        """An empty DeflatedEmbedding."""
        return self.made(DeflatedEmbedding, Deflated(self.no_bytes, self.base, self.order), dtype)

    def stored(self, layer: Any) -> StoredParts:
        """The same codes by range coding."""
        sizes = self.model_dump(exclude=ONLY_HERE)
        return stored_again(RangeCodedEmbeddingLayout(**sizes, states=SCALAR), layer)


class DeflatedLinear(CodedLinear):
    """A linear layer as it is stored."""

    def layout(self) -> DeflatedLayout:
        """Its sizes, and how its bytes are read."""
        return DeflatedLayout(**self.sizes, order=self.coded.order)


class DeflatedEmbedding(CodedEmbedding):
    """An embedding as it is stored."""

    head = DeflatedLinear

    def layout(self) -> DeflatedEmbeddingLayout:
        """Its sizes, and how its bytes are read."""
        return DeflatedEmbeddingLayout(**self.sizes, order=self.coded.order)
