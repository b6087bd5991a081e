"""Linear and embedding layers that hold 8-bit codes and scales, and no floating-point weight."""

from typing import Literal, Self

import torch
from jaxtyping import Float, Int, Int8, Int64
from torch import Tensor, nn

from spq_core.formats.int8.matmul import DECODE_ROWS, int8_linear, is_aligned, pad_columns
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
    let_go,
    scaled_rows,
)


class Int8Layout(Layout):
    """Int8Linear; `scales` is 1 or n_out, `n_padded` the columns of the stored codes."""

    kind: Literal["int8"] = "int8"
    shared_parts = ("codes", "scale")
    n_in: Size
    n_padded: Size
    n_out: Size
    bias: bool
    scales: Size

    @property
    def weight_bits(self) -> float:
        """A byte each."""
        return 8.0 * self.n_in * self.n_out

    def build(self, dtype: torch.dtype) -> nn.Module:
        """An empty Int8Linear."""
        codes = empty(self.n_out, self.n_padded, dtype=torch.int8)
        bias = empty(self.n_out, dtype=dtype) if self.bias else None
        return Int8Linear(codes, empty(self.scales), bias, in_features=self.n_in)


class Int8EmbeddingLayout(Layout):
    """Int8Embedding; `scales` is 1 or n."""

    kind: Literal["int8_embedding"] = "int8_embedding"
    n: Size
    dim: Size
    output_scale: Positive = 1.0
    scales: Size

    def build(self, dtype: torch.dtype) -> nn.Module:
        """An empty Int8Embedding."""
        codes = empty(self.n, self.dim, dtype=torch.int8)
        return Int8Embedding(codes, empty(self.scales), dtype, output_scale=self.output_scale)


class Int8Weight(CompressedLayer):
    """Codes of shape (out, in) and float32 scales of shape (out,) or (1,).

    Both are parameters without gradient, so that tying, device moves and saving treat them like
    any weight. Scales stay float32 when the model is cast: rounding them to bfloat16 would cost
    more than the codes do. Codes on a lattice have a scale per column too.
    """

    exact = ("scale", "input_scale")
    matrix = "codes"

    def __init__(
        self,
        codes: Int8[Tensor, "out in"],
        scale: Float[Tensor, " n_scales"],
        *,
        input_scale: Float[Tensor, " in"] | None = None,
    ) -> None:
        super().__init__()
        self.codes = nn.Parameter(codes, requires_grad=False)
        self.scale = nn.Parameter(scale, requires_grad=False)
        self.input_scale = constant(input_scale)
        self._narrow: tuple[tuple[object, ...], Tensor, Tensor | None] | None = None

    def narrow_scales(self) -> tuple[Tensor, Tensor | None]:
        """Both scales in bfloat16, converted once: for a token, a conversion takes as long as a product."""
        parts = (self.scale,) if self.input_scale is None else (self.scale, self.input_scale)
        state = tuple((part.data_ptr(), part._version) for part in parts)  # noqa: SLF001
        if self._narrow is None or self._narrow[0] != state:
            narrow = [part.data.to(torch.bfloat16) for part in parts]
            self._narrow = (state, narrow[0], narrow[1] if len(narrow) > 1 else None)
        return self._narrow[1:]

    def to_runtime(self) -> Self:
        """Itself: codes that the kernel cannot take as they lie in the file are moved in place."""
        if self.codes.device.type == "cpu" and not is_aligned(self.codes):
            stored = self.codes.data
            self.codes.data = stored.clone()
            let_go(stored)
        return self

    def _dequantized(self, codes: Tensor, rows: slice | Tensor) -> Tensor:
        scale = self.scale.data
        own = scale if scale.numel() == 1 else scale[rows]
        weight = codes.float() * own[..., None]
        return weight if self.input_scale is None else weight * self.input_scale.data


class Int8Linear(Int8Weight, CompressedLinear):
    """y = (x * input_scale) @ (codes * scale).T + bias.

    Codes have zero columns appended up to a multiple of 16, as the kernel wants them; a head tied
    to an embedding uses the embedding's codes as they are.
    """

    def __init__(
        self,
        codes: Int8[Tensor, "out padded"],
        scale: Float[Tensor, " n_scales"],
        bias: Float[Tensor, " out"] | None = None,
        *,
        in_features: int,
        input_scale: Float[Tensor, " n_in"] | None = None,
    ) -> None:
        super().__init__(codes, scale, input_scale=input_scale)
        self.n_in = in_features
        self.bias = constant(bias)

    @property
    def in_features(self) -> int:
        """Number of input columns, without padding."""
        return self.n_in

    @property
    def out_features(self) -> int:
        """Number of output rows."""
        return self.codes.shape[0]

    @staticmethod
    def of(
        codes: Int8[Tensor, "out in"],
        scale: Float[Tensor, " n_scales"],
        bias: Float[Tensor, " out"] | None = None,
    ) -> "Int8Linear":
        """Make a layer from codes without padding."""
        return Int8Linear(pad_columns(codes), scale, bias, in_features=codes.shape[1])

    def unpadded_codes(self) -> Int8[Tensor, "out in"]:
        """The codes of the layer's own columns."""
        return self.codes.data[:, : self.in_features]

    def layout(self) -> Int8Layout:
        """Its sizes."""
        n_out, n_padded = self.codes.shape
        return Int8Layout(
            n_in=self.n_in, n_padded=n_padded, n_out=n_out, bias=self.bias is not None,
            scales=self.scale.numel(),
        )  # fmt: skip

    def float_weight(self, rows: slice = ALL) -> Float[Tensor, "rows n_in"]:
        """Codes times both scales."""
        return self._dequantized(self.unpadded_codes()[rows], rows)

    def keep_rows(self, kept: Int64[Tensor, " k"]) -> CompressedLinear:
        """Cut codes and scales."""
        self._require_plain()
        scale = self.scale.data
        kept_scale = scale if scale.numel() == 1 else scale[kept]
        bias = None if self.bias is None else self.bias.data[kept]
        return Int8Linear.of(self.unpadded_codes()[kept], kept_scale, bias)

    def keep_columns(self, kept: Int64[Tensor, " k"]) -> CompressedLinear:
        """Cut codes."""
        self._require_plain()
        bias = None if self.bias is None else self.bias.data
        return Int8Linear.of(self.unpadded_codes()[:, kept].contiguous(), self.scale.data, bias)

    def _require_plain(self) -> None:
        if self.input_scale is not None:
            raise TypeError("codes on a lattice are not cut; prune before quantizing")

    def forward(self, x: Float[Tensor, "*batch n_in"]) -> Float[Tensor, "*batch n_out"]:
        """Apply the layer in x's dtype."""
        scale: Tensor = self.scale
        input_scale: Tensor | None = self.input_scale
        few = x.dtype == torch.bfloat16 and x.numel() <= DECODE_ROWS * x.shape[-1]
        if few and not torch.compiler.is_compiling() and not x.requires_grad:
            scale, input_scale = self.narrow_scales()
        return int8_linear(x, self.codes, scale, self.bias, input_scale)

    def extra_repr(self) -> str:
        return f"in={self.in_features}, out={self.out_features}, scales={self.scale.numel()}"


class Int8Embedding(Int8Weight, CompressedEmbedding):
    """Rows of codes, widened when looked up."""

    def __init__(
        self,
        codes: Int8[Tensor, "n dim"],
        scale: Float[Tensor, " n_scales"],
        dtype: torch.dtype,
        *,
        output_scale: float = 1.0,
        input_scale: Float[Tensor, " dim"] | None = None,
    ) -> None:
        super().__init__(codes, scale, input_scale=input_scale)
        self.output_scale = output_scale
        # An empty buffer follows `model.to(dtype)`, so the output dtype does too.
        self.register_buffer("dtype_anchor", torch.empty(0, dtype=dtype), persistent=False)
        self.dtype_anchor: Tensor

    def layout(self) -> Int8EmbeddingLayout:
        """Its sizes."""
        n, dim = self.codes.shape
        return Int8EmbeddingLayout(
            n=n, dim=dim, output_scale=self.output_scale, scales=self.scale.numel()
        )

    def tied_head(self, bias: Tensor | None = None) -> Int8Linear:
        """The head uses the embedding's codes as they are."""
        columns = self.codes.shape[1]
        head = Int8Linear(self.codes.data, self.scale.data, bias, in_features=columns)
        head.codes, head.scale, head.input_scale = self.codes, self.scale, self.input_scale
        return head

    def forward(self, ids: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch dim"]:
        """Return the rows of `ids`."""
        rows = self._dequantized(self.codes[ids], ids)
        return scaled_rows(rows, self.output_scale, self.dtype_anchor.dtype)

    def extra_repr(self) -> str:
        return f"n={self.codes.shape[0]}, dim={self.codes.shape[1]}, scales={self.scale.numel()}"
