"""Layers of lattice codes: as they are stored, and as they compute.

A coded layer stands in a model between its construction and the end of loading: `to_runtime` turns it into an
8-bit layer, with a scale per row and one per column. A lattice layer is that 8-bit layer before it is written.
"""

from typing import Any, Literal

import torch
from jaxtyping import Float, Int8
from torch import Tensor, nn

from spq_core.formats.entropy.coding import decode, encode
from spq_core.formats.entropy.steps import CodedWeight, Order, Steps, exponents_of
from spq_core.formats.int8.linear import Int8Embedding, Int8Linear, Int8Weight
from spq_core.formats.int8.matmul import pad_columns
from spq_core.formats.layer import (
    ALL,
    ByteCount,
    CompressedEmbedding,
    CompressedLayer,
    CompressedLinear,
    Layout,
    Positive,
    Size,
    StoredParts,
    constant,
    empty,
)


class _Bytes(Layout):
    """How the bytes of a coded matrix are read."""

    computes_otherwise = True
    n_bytes: ByteCount
    base: Positive
    order: Order

    @property
    def weight_bits(self) -> float:
        """Those of the stored bytes."""
        return 8.0 * self.n_bytes

    def stored(self, layer: Any) -> StoredParts:
        """The same codes, encoded again."""
        coded = _encoded(layer, self.base)
        update = {"n_bytes": coded.packed.numel(), "order": coded.order}
        return StoredParts(self.model_copy(update=update), {"packed": coded.packed})

    def _empty(self) -> CodedWeight:
        return CodedWeight(empty(self.n_bytes, dtype=torch.uint8), self.base, self.order)


class CodedLayout(_Bytes):
    """CodedLinear: `n_bytes` bytes that decode to codes on a lattice."""

    kind: Literal["coded"] = "coded"
    shared_parts = ("packed",)
    n_in: Size
    n_out: Size
    bias: bool

    def build(self, dtype: torch.dtype) -> nn.Module:
        """An empty CodedLinear."""
        bias = empty(self.n_out, dtype=dtype) if self.bias else None
        return CodedLinear(self._empty(), self.n_out, self.n_in, bias)


class CodedEmbeddingLayout(_Bytes):
    """CodedEmbedding."""

    kind: Literal["coded_embedding"] = "coded_embedding"
    n: Size
    dim: Size
    output_scale: Positive = 1.0

    def build(self, dtype: torch.dtype) -> nn.Module:
        """An empty CodedEmbedding."""
        return CodedEmbedding(self._empty(), self.n, self.dim, dtype, self.output_scale)


def _encoded(layer: Any, base: float) -> CodedWeight:
    """The stored form of a layer that came out of `to_runtime`."""
    if not isinstance(layer, Int8Weight) or layer.input_scale is None:
        raise TypeError(f"a {type(layer).__name__} has no codes on a lattice")
    columns = layer.input_scale.data.cpu()
    steps = Steps(base, exponents_of(layer.scale.data.cpu() / base), exponents_of(columns))
    return encode(layer.codes.data[:, : columns.numel()], steps)


class Coded(CompressedLayer):
    """A stored matrix: one parameter, `packed`."""

    matrix = "packed"
    expands_in_threads = True

    def __init__(self, coded: CodedWeight, n_out: int, n_in: int) -> None:
        super().__init__()
        self.packed = nn.Parameter(coded.packed, requires_grad=False)
        self.base, self.order = coded.base, coded.order
        self.n_out, self.n_in = n_out, n_in

    def decoded(self) -> tuple[Int8[Tensor, "out n_in"], Steps]:
        """Codes and steps, on the CPU.

        Raises:
            ArtifactError: the bytes are not those of a matrix of this size.
        """
        stored = CodedWeight(self.packed.data.cpu(), self.base, self.order)
        return decode(stored, self.n_out, self.n_in)


class CodedLinear(Coded, CompressedLinear):
    """A linear layer before `to_runtime`."""

    def __init__(self, coded: CodedWeight, n_out: int, n_in: int, bias: Tensor | None) -> None:
        super().__init__(coded, n_out, n_in)
        self.bias = constant(bias)

    @property
    def in_features(self) -> int:
        """Number of input columns."""
        return self.n_in

    @property
    def out_features(self) -> int:
        """Number of output rows."""
        return self.n_out

    def layout(self) -> CodedLayout:
        """Its sizes, and how its bytes are read."""
        return CodedLayout(
            n_in=self.n_in, n_out=self.n_out, bias=self.bias is not None,
            n_bytes=self.packed.numel(), base=self.base, order=self.order,
        )  # fmt: skip

    def float_weight(self, rows: slice = ALL) -> Float[Tensor, "rows n_in"]:
        """Decoded codes times their steps."""
        return self.to_runtime().float_weight(rows)

    def to_runtime(self) -> Int8Linear:
        """Make the layer that computes."""
        codes, steps = self.decoded()
        linear = Int8Linear(
            pad_columns(codes), steps.row_steps, None if self.bias is None else self.bias.data,
            in_features=self.n_in, input_scale=steps.column_steps,
        )  # fmt: skip
        return linear.to(self.packed.device)


class CodedEmbedding(Coded, CompressedEmbedding):
    """An embedding before `to_runtime`."""

    def __init__(
        self, coded: CodedWeight, n: int, dim: int, dtype: torch.dtype, output_scale: float = 1.0
    ) -> None:
        super().__init__(coded, n, dim)
        self.dtype, self.output_scale = dtype, output_scale

    def layout(self) -> CodedEmbeddingLayout:
        """Its sizes, and how its bytes are read."""
        return CodedEmbeddingLayout(
            n=self.n_out, dim=self.n_in, output_scale=self.output_scale,
            n_bytes=self.packed.numel(), base=self.base, order=self.order,
        )  # fmt: skip

    def to_runtime(self) -> Int8Embedding:
        """Make the embedding that computes."""
        codes, steps = self.decoded()
        embedding = Int8Embedding(
            codes, steps.row_steps, self.dtype,
            output_scale=self.output_scale, input_scale=steps.column_steps,
        )  # fmt: skip
        return embedding.to(self.packed.device)

    def tied_head(self, bias: Tensor | None = None) -> CodedLinear:
        """The head is read from the embedding's bytes."""
        coded = CodedWeight(self.packed.data, self.base, self.order)
        head = CodedLinear(coded, self.n_out, self.n_in, bias)
        head.packed = self.packed
        return head


class LatticeLinear(Int8Linear):
    """An 8-bit layer of lattice codes, with the form it will be stored in."""

    def __init__(
        self, codes: Int8[Tensor, "out n_in"], steps: Steps, bias: Tensor | None, coded: CodedWeight
    ) -> None:
        super().__init__(
            pad_columns(codes), steps.row_steps, bias,
            in_features=codes.shape[1], input_scale=steps.column_steps,
        )  # fmt: skip
        self.coded = coded

    def to_stored(self) -> CodedLinear:
        """Its coded twin."""
        bias = None if self.bias is None else self.bias.data
        return CodedLinear(self.coded, self.out_features, self.in_features, bias)


class LatticeEmbedding(Int8Embedding):
    """An 8-bit embedding of lattice codes, with the form it will be stored in."""

    def __init__(
        self,
        codes: Int8[Tensor, "n dim"],
        steps: Steps,
        dtype: torch.dtype,
        coded: CodedWeight,
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
        return CodedEmbedding(self.coded, n, dim, dtype, self.output_scale)
