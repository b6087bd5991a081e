"""Linear and embedding layers that hold codes of 8, 4 or 3 bits, packed without gaps.

Eight codes of b bits take b bytes. Widening them is left to tiles of a few hundred rows, so no
floating-point copy of a whole matrix exists.
"""

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from torch.nn import functional

from spq_core.formats import cuda_decode
from spq_core.formats.exact_parts import ExactParts
from spq_core.formats.int8.linear import scaled_rows

CODES_PER_PACK = 8
BYTE = 0xFF
HALF_BYTE, WHOLE_BYTE = 4, 8
TILE_BYTES = 4 << 20


def pack(codes: UInt8[Tensor, "out n_in"], bits: int) -> UInt8[Tensor, "out n_bytes"]:
    """Put eight codes of `bits` bits into `bits` bytes, the first code in the lowest bits.

    Columns are filled up with zeros to a multiple of eight.
    """
    padded = functional.pad(codes, (0, -codes.shape[1] % CODES_PER_PACK))
    if bits == WHOLE_BYTE:
        return padded
    if bits == HALF_BYTE:
        return padded[:, ::2] | (padded[:, 1::2] << HALF_BYTE)
    groups = padded.view(codes.shape[0], -1, CODES_PER_PACK).long()
    words = (groups << (bits * torch.arange(CODES_PER_PACK, device=codes.device))).sum(dim=2)
    at = 8 * torch.arange(bits, device=codes.device)
    return ((words[..., None] >> at) & BYTE).to(torch.uint8).flatten(1)


def unpack(packed: UInt8[Tensor, "out n_bytes"], bits: int, n_in: int) -> UInt8[Tensor, "out n_in"]:
    """The inverse of `pack`."""
    if bits == WHOLE_BYTE:
        return packed[:, :n_in]
    if bits == HALF_BYTE:
        low, high = packed & (BYTE >> HALF_BYTE), packed >> HALF_BYTE
        return torch.stack([low, high], dim=-1).flatten(1)[:, :n_in]
    groups = packed.view(packed.shape[0], -1, bits).long()
    words = (groups << (8 * torch.arange(bits, device=packed.device))).sum(dim=2)
    at = bits * torch.arange(CODES_PER_PACK, device=packed.device)
    codes = (words[..., None] >> at) & ((1 << bits) - 1)
    return codes.to(torch.uint8).flatten(1)[:, :n_in]


class PackedWeight(ExactParts):
    """Packed codes, float16 scales and 8-bit zero points per row and group of columns."""

    exact = ("scale",)

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

    def extra_repr(self) -> str:
        return f"bits={self.bits}, in={self.n_in}, group_size={self.group_size}"


class PackedLinear(PackedWeight):
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
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    @property
    def in_features(self) -> int:
        """Number of input columns."""
        return self.n_in

    @property
    def out_features(self) -> int:
        """Number of output rows."""
        return self.packed.shape[0]

    def forward(self, x: Float[Tensor, "*batch n_in"]) -> Float[Tensor, "*batch n_out"]:
        """Apply the layer in x's dtype."""
        n_out = self.out_features
        flat = x.reshape(-1, x.shape[-1])
        if self._decodes(flat):
            made = cuda_decode.int4_rows(flat, self.packed, self.scale, self.zero, self.group_size)
            product = made.view(*x.shape[:-1], n_out)
            return product if self.bias is None else product + self.bias.to(product.dtype)
        rows = max(64, TILE_BYTES // (4 * self.n_in)) if x.device.type == "cpu" else n_out
        tiles = [
            functional.linear(x, self.dequantized(slice(start, start + rows)).to(x.dtype))
            for start in range(0, n_out, rows)
        ]
        product = tiles[0] if len(tiles) == 1 else torch.cat(tiles, dim=-1)
        return product if self.bias is None else product + self.bias.to(product.dtype)

    def _decodes(self, rows: Tensor) -> bool:
        """Whether the kernel for few rows on a GPU can take the call."""
        inference = not (torch.is_grad_enabled() and rows.requires_grad)
        known = self.bits == HALF_BYTE and cuda_decode.group_columns(self.group_size) is not None
        return known and inference and cuda_decode.takes(rows)


class PackedEmbedding(PackedWeight):
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

    def forward(self, ids: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch dim"]:
        """Return the rows of `ids`."""
        rows = self.dequantized(ids.flatten()).view(*ids.shape, self.n_in)
        return scaled_rows(rows, self.output_scale, self.dtype_anchor.dtype)
