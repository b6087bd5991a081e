"""Linear layers whose codes stay coded in memory."""

from jaxtyping import Float, Int8
from torch import Tensor, nn

from spq_core.formats.decoding_ahead import AheadDecoder, StaysCoded
from spq_core.formats.int8.linear import Int8Linear
from spq_core.formats.int8.matmul import int8_linear, pad_columns
from spq_core.formats.layer import ALL, constant
from spq_core.formats.range_coded.coding import RangeCoded, steps_of


class ResidentLinear(StaysCoded):
    """y = W x + bias, with W as its stored bytes."""

    exact = ("scale", "input_scale")
    matrix = "packed"

    def __init__(
        self, coded: RangeCoded, n_out: int, n_in: int, bias: Tensor | None, decoder: AheadDecoder
    ) -> None:
        super().__init__()
        steps = steps_of(coded, n_out, n_in)
        self.packed = nn.Parameter(coded.packed, requires_grad=False)
        device = coded.packed.device
        self.scale = nn.Parameter(steps.row_steps.to(device), requires_grad=False)
        self.input_scale = nn.Parameter(steps.column_steps.to(device), requires_grad=False)
        self.bias = constant(bias)
        self.n_out, self.n_in = n_out, n_in
        self.decoder = decoder
        self._read_as = coded.with_bytes(coded.packed[:0])

    @property
    def coded_bytes(self) -> int:
        """Those of the file."""
        return self.packed.numel()

    @property
    def in_features(self) -> int:
        """Number of input columns."""
        return self.n_in

    @property
    def out_features(self) -> int:
        """Number of output rows."""
        return self.n_out

    def decoded(self) -> Int8[Tensor, "out padded"]:
        """Codes as the kernels want them."""
        coded = self._read_as.with_bytes(self.packed.data)
        return pad_columns(coded.decoded(self.n_out, self.n_in)[0].to(self.packed.device))

    def expanded(self) -> Int8Linear:
        """The layer with its codes decoded, for good."""
        bias = None if self.bias is None else self.bias.data
        return Int8Linear(
            self.decoded(), self.scale.data, bias,
            in_features=self.n_in, input_scale=self.input_scale.data,
        )  # fmt: skip

    def float_weight(self, rows: slice = ALL) -> Float[Tensor, "rows n_in"]:
        """Codes times both steps."""
        codes = self.decoded()[rows, : self.n_in].float()
        return codes * self.scale.data[rows, None] * self.input_scale.data

    def forward(self, x: Float[Tensor, "*batch n_in"]) -> Float[Tensor, "*batch n_out"]:
        """Apply the layer in x's dtype."""
        codes = self.decoder.codes(self)
        return int8_linear(x, codes, self.scale.data, self.bias, self.input_scale.data)

    def extra_repr(self) -> str:
        return f"in={self.n_in}, out={self.n_out}, bytes={self.packed.numel()}"
