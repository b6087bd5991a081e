"""A linear layer as the product of two thin ones."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor, nn

from spq_core.formats.adapted.linear import AdaptedLayout
from spq_core.formats.layer import ALL, CompressedLinear, Layout
from spq_core.formats.registry import MatrixLayout, linear_layout
from spq_core.formats.slicing import AnyLinear, float_weight, keep_columns, keep_rows

FactorLayout = Annotated[MatrixLayout | AdaptedLayout, Field(discriminator="kind")]


class LowRankLayout(Layout):
    """LowRankLinear and its two factors."""

    kind: Literal["low_rank"] = "low_rank"
    down: FactorLayout
    up: FactorLayout

    def build(self, dtype: torch.dtype) -> nn.Module:
        """An empty LowRankLinear."""
        down: Any = self.down.build(dtype)
        up: Any = self.up.build(dtype)
        return LowRankLinear(down, up)

    def within(self) -> Mapping[str, Layout]:
        """The factors."""
        return {"down": self.down, "up": self.up}


class LowRankLinear(CompressedLinear):
    """y = up(down(x)): `down` maps to the rank, `up` to the output and keeps the bias.

    The factors are layers of their own, so quantization needs to know nothing about SVD.
    """

    def __init__(self, down: AnyLinear, up: AnyLinear) -> None:
        super().__init__()
        self.down = down
        self.up = up

    @property
    def in_features(self) -> int:
        """Number of input columns."""
        return self.down.in_features

    @property
    def out_features(self) -> int:
        """Number of output rows."""
        return self.up.out_features

    @property
    def bias(self) -> Any:
        """The second factor's bias."""
        return self.up.bias

    @property
    def rank(self) -> int:
        """Width between the factors."""
        return self.down.out_features

    def layout(self) -> LowRankLayout:
        """Those of the factors."""
        return LowRankLayout(down=linear_layout(self.down), up=linear_layout(self.up))

    def float_weight(self, rows: slice = ALL) -> Float[Tensor, "rows n_in"]:
        """The product of the factors."""
        return float_weight(self.up, rows) @ float_weight(self.down)

    def keep_rows(self, kept: Int64[Tensor, " k"]) -> "LowRankLinear":
        """Cut the second factor."""
        return LowRankLinear(self.down, keep_rows(self.up, kept))

    def keep_columns(self, kept: Int64[Tensor, " k"]) -> "LowRankLinear":
        """Cut the first factor."""
        return LowRankLinear(keep_columns(self.down, kept), self.up)

    def forward(self, x: Float[Tensor, "*batch n_in"]) -> Float[Tensor, "*batch n_out"]:
        """Apply both factors."""
        y: Tensor = self.up(self.down(x))
        return y


def factors_of(module: object) -> tuple[AnyLinear, AnyLinear] | None:
    """The factors of a pair, first the one that receives the input; None for anything else."""
    return (module.down, module.up) if isinstance(module, LowRankLinear) else None
