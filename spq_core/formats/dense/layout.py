"""nn.Linear as a stored form: the weight as it is, in another size than the architecture gives it."""

from typing import Literal

import torch
from torch import nn

from spq_core.formats.layer import Layout, Size


class DenseLayout(Layout):
    """nn.Linear of a size that differs from the architecture's."""

    kind: Literal["dense"] = "dense"
    shared_parts = ("weight",)
    n_in: Size
    n_out: Size
    bias: bool

    @property
    def weight_bits(self) -> float:
        """Of two bytes each, whatever the dtype."""
        return 16.0 * self.n_in * self.n_out

    def build(self, dtype: torch.dtype) -> nn.Module:
        """An nn.Linear."""
        return nn.Linear(self.n_in, self.n_out, bias=self.bias, dtype=dtype, device="meta")


def dense_layout(linear: nn.Linear) -> DenseLayout:
    """The layout of a layer in floating point."""
    return DenseLayout(
        n_in=linear.in_features, n_out=linear.out_features, bias=linear.bias is not None
    )
