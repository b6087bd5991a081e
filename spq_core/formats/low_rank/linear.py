"""A linear layer as the product of two thin ones."""

from jaxtyping import Float
from torch import Tensor, nn

from spq_core.formats.adapted.linear import AdaptedLinear, Base

Factor = Base | AdaptedLinear


class LowRankLinear(nn.Module):
    """y = up(down(x)): `down` maps to the rank, `up` to the output and keeps the bias.

    The factors are layers of their own, so quantization needs to know nothing about SVD.
    """

    def __init__(self, down: Factor, up: Factor) -> None:
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
    def rank(self) -> int:
        """Width between the factors."""
        return self.down.out_features

    def forward(self, x: Float[Tensor, "*batch n_in"]) -> Float[Tensor, "*batch n_out"]:
        """Apply both factors."""
        y: Tensor = self.up(self.down(x))
        return y
