"""Layers of lattice codes that are stored by range coding: before they are written, as they are stored, and how they compute."""

from typing import Any, Literal

import torch
from jaxtyping import Float, Int8
from torch import Tensor, nn

from spq_core.formats.decoding_ahead import AheadDecoder
from spq_core.formats.int8.linear import Int8Embedding, Int8Linear
from spq_core.formats.int8.matmul import pad_columns
from spq_core.formats.lattice.layers import (
    CodedEmbedding,
    CodedEmbeddingLayout,
    CodedLinear,
    CodedLinearLayout,
    codes_of,
)
from spq_core.formats.lattice.steps import Steps, on_grid
from spq_core.formats.layer import StoredParts
from spq_core.formats.range_coded.coding import RangeCoded, encode
from spq_core.formats.range_coded.resident import ResidentLinear

States = Literal[1, 8, 16, 32, 64]


class RangeCodedLayout(CodedLinearLayout):
    """RangeCodedLinear: `n_bytes` bytes that decode to codes on a lattice."""

    kind: Literal["range_coded"] = "range_coded"
    states: States
    """Of the trellis that the codes follow; 1 where each is free."""

    def build(self, dtype: torch.dtype) -> nn.Module:
        """An empty RangeCodedLinear."""
        return self.made(RangeCodedLinear, RangeCoded(self.no_bytes, self.base, self.states), dtype)

    def stored(self, layer: Any) -> StoredParts:
        """The same codes, encoded again."""
        return stored_again(self, layer)


class RangeCodedEmbeddingLayout(CodedEmbeddingLayout):
    """RangeCodedEmbedding."""

    kind: Literal["range_coded_embedding"] = "range_coded_embedding"
    states: States
    """Of the trellis that the codes follow; 1 where each is free."""

    def build(self, dtype: torch.dtype) -> nn.Module:
        """An empty RangeCodedEmbedding."""
        coded = RangeCoded(self.no_bytes, self.base, self.states)
        return self.made(RangeCodedEmbedding, coded, dtype)

    def stored(self, layer: Any) -> StoredParts:
        """The same codes, encoded again."""
        return stored_again(self, layer)


def stored_again(layout: RangeCodedLayout | RangeCodedEmbeddingLayout, layer: Any) -> StoredParts:
    """What is written of a layer that came out of `to_runtime` or `to_resident`."""
    if isinstance(layer, ResidentLinear):
        return StoredParts(layout, {"packed": layer.packed.data})
    coded = encode(*codes_of(layer, layout.base), layout.states)
    update = {"n_bytes": coded.packed.numel()}
    return StoredParts(layout.model_copy(update=update), {"packed": coded.packed})


class RangeCodedLinear(CodedLinear):
    """A linear layer as it is stored."""

    can_stay_coded = True

    def layout(self) -> RangeCodedLayout:
        """Its sizes, and how its bytes are read."""
        return RangeCodedLayout(**self.sizes, states=self.coded.states)

    def to_resident(self, decoder: AheadDecoder) -> ResidentLinear:
        """The same bytes, decoded when they are used."""
        bias = None if self.bias is None else self.bias.data
        coded = self.coded.with_bytes(self.packed.data.clone())  # not the mapped file
        return ResidentLinear(coded, self.n_out, self.n_in, bias, decoder)

    def to_working(self) -> "LatticeLinear":
        """Codes, steps, and the bytes they came from."""
        codes, steps = self.coded.decoded(self.n_out, self.n_in)
        bias = None if self.bias is None else self.bias.data
        return LatticeLinear(codes, steps, bias, self.coded).to(self.packed.device)


class RangeCodedEmbedding(CodedEmbedding):
    """An embedding as it is stored."""

    head = RangeCodedLinear

    def layout(self) -> RangeCodedEmbeddingLayout:
        """Its sizes, and how its bytes are read."""
        return RangeCodedEmbeddingLayout(**self.sizes, states=self.coded.states)

    def to_working(self) -> "LatticeEmbedding":
        """Codes, steps, and the bytes they came from."""
        codes, steps = self.coded.decoded(self.n_out, self.n_in)
        embedding = LatticeEmbedding(codes, steps, self.dtype, self.coded, self.output_scale)
        return embedding.to(self.packed.device)


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

    def scale_rows(self, factors: Float[Tensor, " out"]) -> "LatticeLinear":
        """The same codes with other steps of rows."""
        codes, steps = codes_of(self, self.coded.base)
        base, rows = on_grid(steps.row_steps * factors.cpu())
        changed = Steps(base, rows, steps.columns)
        bias = None if self.bias is None else self.bias.data * factors
        coded = encode(codes, changed, self.coded.states)
        return LatticeLinear(codes, changed, bias, coded).to(self.codes.device)

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
