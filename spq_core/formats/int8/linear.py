"""Linear and embedding layers that hold 8-bit codes and scales, and no floating-point weight."""

import torch
from jaxtyping import Float, Int, Int8
from torch import Tensor, nn

from spq_core.formats.exact_parts import ExactParts
from spq_core.formats.int8.matmul import int8_linear, pad_columns
from spq_core.formats.steps import CodedWeight


class Int8Weight(ExactParts):
    """Codes of shape (out, in) and float32 scales of shape (out,) or (1,).

    Both are parameters without gradient, so that tying, device moves and saving treat them like
    any weight. Scales stay float32 when the model is cast: rounding them to bfloat16 would cost
    more than the codes do.

    Codes on a lattice have a scale per column too; until they are written, `coded` is their stored form.
    """

    exact = ("scale", "input_scale")

    def __init__(
        self,
        codes: Int8[Tensor, "out in"],
        scale: Float[Tensor, " n_scales"],
        *,
        input_scale: Float[Tensor, " in"] | None = None,
        coded: CodedWeight | None = None,
    ) -> None:
        super().__init__()
        self.codes = nn.Parameter(codes, requires_grad=False)
        self.scale = nn.Parameter(scale, requires_grad=False)
        self.input_scale = (
            None if input_scale is None else nn.Parameter(input_scale, requires_grad=False)
        )
        self.coded = coded
        self._narrow: tuple[tuple[object, ...], Tensor, Tensor | None] | None = None

    def narrow_scales(self) -> tuple[Tensor, Tensor | None]:
        """Both scales in bfloat16, converted once: for a token, a conversion takes as long as a product."""
        parts = (self.scale,) if self.input_scale is None else (self.scale, self.input_scale)
        state = tuple((part.data_ptr(), part._version) for part in parts)  # noqa: SLF001
        if self._narrow is None or self._narrow[0] != state:
            narrow = [part.data.to(torch.bfloat16) for part in parts]
            self._narrow = (state, narrow[0], narrow[1] if len(narrow) > 1 else None)
        return self._narrow[1:]


class Int8Linear(Int8Weight):
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
        coded: CodedWeight | None = None,
    ) -> None:
        super().__init__(codes, scale, input_scale=input_scale, coded=coded)
        self.in_features = in_features
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    @property
    def out_features(self) -> int:
        """Number of output rows."""
        return self.codes.shape[0]

    @classmethod
    def of(
        cls,
        codes: Int8[Tensor, "out in"],
        scale: Float[Tensor, " n_scales"],
        bias: Float[Tensor, " out"] | None = None,
    ) -> "Int8Linear":
        """Make a layer from codes without padding."""
        return cls(pad_columns(codes), scale, bias, in_features=codes.shape[1])

    def unpadded_codes(self) -> Int8[Tensor, "out in"]:
        """The codes of the layer's own columns."""
        return self.codes.data[:, : self.in_features]

    def forward(self, x: Float[Tensor, "*batch n_in"]) -> Float[Tensor, "*batch n_out"]:
        """Apply the layer in x's dtype."""
        scale: Tensor = self.scale
        input_scale: Tensor | None = self.input_scale
        if x.dtype == torch.bfloat16 and not torch.compiler.is_compiling() and not x.requires_grad:
            scale, input_scale = self.narrow_scales()
        return int8_linear(x, self.codes, scale, self.bias, input_scale)

    def extra_repr(self) -> str:
        return f"in={self.in_features}, out={self.out_features}, scales={self.scale.numel()}"


class Int8Embedding(Int8Weight):
    """Rows of codes, widened when looked up."""

    def __init__(
        self,
        codes: Int8[Tensor, "n dim"],
        scale: Float[Tensor, " n_scales"],
        dtype: torch.dtype,
        *,
        output_scale: float = 1.0,
        input_scale: Float[Tensor, " dim"] | None = None,
        coded: CodedWeight | None = None,
    ) -> None:
        super().__init__(codes, scale, input_scale=input_scale, coded=coded)
        self.output_scale = output_scale
        # An empty buffer follows `model.to(dtype)`, so the output dtype does too.
        self.register_buffer("dtype_anchor", torch.empty(0, dtype=dtype), persistent=False)
        self.dtype_anchor: Tensor

    def forward(self, ids: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch dim"]:
        """Return the rows of `ids`."""
        scale = self.scale if self.scale.numel() == 1 else self.scale[ids].unsqueeze(-1)
        rows = self.codes[ids].float() * scale
        if self.input_scale is not None:
            rows = rows * self.input_scale
        return scaled_rows(rows, self.output_scale, self.dtype_anchor.dtype)

    def extra_repr(self) -> str:
        return f"n={self.codes.shape[0]}, dim={self.codes.shape[1]}, scales={self.scale.numel()}"


def scaled_rows(rows: Tensor, output_scale: float, dtype: torch.dtype) -> Tensor:
    """Looked-up rows as the model wants them: some scale them, by a factor rounded to their dtype."""
    if output_scale == 1.0:
        return rows.to(dtype)
    return (rows * torch.tensor(output_scale, dtype=dtype).to(rows)).to(dtype)
