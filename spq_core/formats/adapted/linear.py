"""A linear layer with a low-rank adapter beside it."""

from jaxtyping import Float
from torch import Tensor, nn

from spq_core.formats.int8.linear import Int8Linear
from spq_core.formats.packed.linear import PackedLinear

Base = nn.Linear | Int8Linear | PackedLinear


class AdaptedLinear(nn.Module):
    """y = base(x) + scale · up (down x) (LoRA, arXiv:2106.09685)."""

    def __init__(
        self,
        base: Base,
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
    def bias(self) -> Tensor | None:
        """The base's bias."""
        return self.base.bias

    def forward(self, x: Float[Tensor, "*batch n_in"]) -> Float[Tensor, "*batch n_out"]:
        """Apply both."""
        down, up = self.adapter_down.to(x.dtype), self.adapter_up.to(x.dtype)
        y: Tensor = self.base(x)
        return y + self.scale * ((x @ down.T) @ up.T)


def _parameter(tensor: Tensor) -> nn.Parameter:
    if isinstance(tensor, nn.Parameter):
        return tensor
    return nn.Parameter(tensor, requires_grad=False)
