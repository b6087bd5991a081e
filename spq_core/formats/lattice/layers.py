"""Layers of lattice codes, before they compute.

A coded layer stands in a model between its construction and the end of loading: `to_runtime` turns it into an 8-bit layer, with
a scale per row and one per column. How its bytes are read is the stored form's affair.
"""

from typing import Any, ClassVar, Protocol, Self

import torch
from jaxtyping import Float, Int8, UInt8
from torch import Tensor, nn

from spq_core.formats.int8.linear import Int8Embedding, Int8Linear, Int8Weight
from spq_core.formats.int8.matmul import pad_columns
from spq_core.formats.lattice.steps import Steps, exponents_of
from spq_core.formats.layer import (
    ALL,
    ByteCount,
    CompressedEmbedding,
    CompressedLayer,
    CompressedLinear,
    Layout,
    Positive,
    Size,
    constant,
    empty,
)


class CodedWeight(Protocol):
    """The stored form of one matrix: bytes, and what tells how they are read."""

    @property
    def packed(self) -> UInt8[Tensor, " n_bytes"]:
        """The bytes."""

    @property
    def base(self) -> float:
        """Of its steps."""

    def with_bytes(self, packed: UInt8[Tensor, " n_bytes"]) -> Self:
        """Other bytes, read alike."""

    def decoded(self, n_out: int, n_in: int) -> tuple[Int8[Tensor, "out n_in"], Steps]:
        """Codes and steps, on the CPU.

        Raises:
            ArtifactError: the bytes are not those of a matrix of this size.
        """


class CodedLayout(Layout):
    """What layouts of coded matrices share."""

    computes_otherwise = True
    n_bytes: ByteCount
    base: Positive
    """Of its steps."""

    @property
    def weight_bits(self) -> float:
        """Those of the stored bytes."""
        return 8.0 * self.n_bytes

    @property
    def no_bytes(self) -> Tensor:
        """As many as there will be, without values."""
        return empty(self.n_bytes, dtype=torch.uint8)


class CodedLinearLayout(CodedLayout):
    """Of a CodedLinear."""

    shared_parts = ("packed",)
    n_in: Size
    n_out: Size
    bias: bool

    def made(self, kind: "type[CodedLinear]", coded: CodedWeight, dtype: torch.dtype) -> nn.Module:
        """The layer, without values."""
        bias = empty(self.n_out, dtype=dtype) if self.bias else None
        return kind(coded, self.n_out, self.n_in, bias)


class CodedEmbeddingLayout(CodedLayout):
    """Of a CodedEmbedding."""

    n: Size
    dim: Size
    output_scale: Positive = 1.0

    def made(
        self, kind: "type[CodedEmbedding]", coded: CodedWeight, dtype: torch.dtype
    ) -> nn.Module:
        """The layer, without values."""
        return kind(coded, self.n, self.dim, dtype, self.output_scale)


def codes_of(layer: Any, base: float) -> tuple[Int8[Tensor, "out n_in"], Steps]:
    """Codes and steps of a layer that came out of `to_runtime`."""
    if not isinstance(layer, Int8Weight) or layer.input_scale is None:
        raise TypeError(f"a {type(layer).__name__} has no codes on a lattice")
    columns = layer.input_scale.data.cpu()
    steps = Steps(base, exponents_of(layer.scale.data.cpu() / base), exponents_of(columns))
    return layer.codes.data[:, : columns.numel()], steps


class Coded(CompressedLayer):
    """A stored matrix: one parameter, `packed`."""

    matrix = "packed"
    expands_in_threads = True

    def __init__(self, coded: CodedWeight, n_out: int, n_in: int) -> None:
        super().__init__()
        self.packed = nn.Parameter(coded.packed, requires_grad=False)
        self._read_as = coded.with_bytes(coded.packed[:0])
        self.n_out, self.n_in = n_out, n_in

    @property
    def coded(self) -> Any:
        """Its bytes as they are now, and how they are read."""
        return self._read_as.with_bytes(self.packed.data)


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

    @property
    def sizes(self) -> dict[str, Any]:
        """What layouts of every kind of bytes tell."""
        return {
            "n_in": self.n_in, "n_out": self.n_out, "bias": self.bias is not None,
            "n_bytes": self.packed.numel(), "base": self.coded.base,
        }  # fmt: skip

    def float_weight(self, rows: slice = ALL) -> Float[Tensor, "rows n_in"]:
        """Decoded codes times their steps."""
        return self.to_runtime().float_weight(rows)

    def to_runtime(self) -> Int8Linear:
        """Make the layer that computes."""
        codes, steps = self.coded.decoded(self.n_out, self.n_in)
        linear = Int8Linear(
            pad_columns(codes), steps.row_steps, None if self.bias is None else self.bias.data,
            in_features=self.n_in, input_scale=steps.column_steps,
        )  # fmt: skip
        return linear.to(self.packed.device)


class CodedEmbedding(Coded, CompressedEmbedding):
    """An embedding before `to_runtime`."""

    head: ClassVar[type[CodedLinear]]
    """What reads the same bytes as a head."""

    def __init__(
        self,
        coded: CodedWeight,
        n: int,
        dim: int,
        dtype: torch.dtype,
        output_scale: float = 1.0,
    ) -> None:
        super().__init__(coded, n, dim)
        self.dtype, self.output_scale = dtype, output_scale

    @property
    def sizes(self) -> dict[str, Any]:
        """What layouts of every kind of bytes tell."""
        return {
            "n": self.n_out, "dim": self.n_in, "output_scale": self.output_scale,
            "n_bytes": self.packed.numel(), "base": self.coded.base,
        }  # fmt: skip

    def to_runtime(self) -> Int8Embedding:
        """Make the embedding that computes."""
        codes, steps = self.coded.decoded(self.n_out, self.n_in)
        embedding = Int8Embedding(
            codes, steps.row_steps, self.dtype,
            output_scale=self.output_scale, input_scale=steps.column_steps,
        )  # fmt: skip
        return embedding.to(self.packed.device)

    def tied_head(self, bias: Tensor | None = None) -> CodedLinear:
        """The head is read from the embedding's bytes."""
        head = self.head(self.coded, self.n_out, self.n_in, bias)
        head.packed = self.packed
        return head
