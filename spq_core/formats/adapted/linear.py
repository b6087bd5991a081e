"""A linear layer with a low-rank adapter beside it."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from spq_core.formats.layer import ALL, CompressedLinear, Layout, Size, empty
from spq_core.formats.registry import MatrixLayout, linear_layout
from spq_core.formats.slicing import AnyLinear, float_weight


class AdaptedLayout(Layout):
    """AdaptedLinear: a layer and an adapter of some rank beside it."""

    kind: Literal["adapted"] = "adapted"
    base: Annotated[MatrixLayout, Field(discriminator="kind")]
    rank: Size

    def build(self, dtype: torch.dtype) -> nn.Module:
        """An empty AdaptedLinear."""
        base: Any = self.base.build(dtype)
        down = empty(self.rank, base.in_features, dtype=dtype)
        return AdaptedLinear(base, down, empty(base.out_features, self.rank, dtype=dtype))

    @property
    def adapter_bits(self) -> float:
        """Two bytes a value."""
        base: Any = self.base.build(torch.float32)
        return self.base.adapter_bits + 16.0 * self.rank * int(base.in_features + base.out_features)

    def within(self) -> Mapping[str, Layout]:
        """The layer under the adapter."""
        return {"base": self.base}


class AdaptedLinear(CompressedLinear):
    """y = base(x) + scale · up (down x) (LoRA, arXiv:2106.09685)."""

    def __init__(
        self,
        base: AnyLinear,
        adapter_down: Float[Tensor, "r n_in"],
        adapter_up: Float[Tensor, "n_out r"],
        scale: float = 1.0,
    ) -> None:
        """Keep parameters as they are given, so that one being trained stays the one that is used."""
        super().__init__()
        self.base = base
        self.adapter_down = _parameter(adapter_down)
        self.adapter_up = _parameter(adapter_up)
        self.scale = scale
        """1 in a stored layer: it is multiplied into `adapter_up`."""

    @property
    def in_features(self) -> int:
        """Number of input columns."""
        return self.base.in_features

    @property
    def out_features(self) -> int:
        """Number of output rows."""
        return self.base.out_features

    @property
    def bias(self) -> Any:
        """The base's bias."""
        return self.base.bias

    def layout(self) -> AdaptedLayout:
        """That of the base, and the rank."""
        return AdaptedLayout(base=linear_layout(self.base), rank=self.adapter_down.shape[0])

    def float_weight(self, rows: slice = ALL) -> Float[Tensor, "rows n_in"]:
        """The base's weight and the adapter's product."""
        beside = self.adapter_up.data[rows].float() @ self.adapter_down.data.float()
        return float_weight(self.base, rows) + self.scale * beside

    def forward(self, x: Float[Tensor, "*batch n_in"]) -> Float[Tensor, "*batch n_out"]:
        """Apply both."""
        down, up = self.adapter_down.to(x.dtype), self.adapter_up.to(x.dtype)
        y: Tensor = self.base(x)
        return y + self.scale * ((x @ down.T) @ up.T)


def _parameter(tensor: Tensor) -> nn.Parameter:
    if isinstance(tensor, nn.Parameter):
        return tensor
    return nn.Parameter(tensor, requires_grad=False)
