"""The matrices of a decoder layer in the order data meets them, each with what it receives."""

from collections.abc import Iterator
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor, nn

from spq_core.calibration.inputs import LayerInputs
from spq_core.families.family import Family
from spq_core.layers.low_rank_linear import LowRankLinear
from spq_core.layers.slicing import float_weight, linear_at


class Matrix(NamedTuple):
    """A floating-point matrix about to be quantized."""

    name: str
    """Within the layer; factors of a pair end in `.down` and `.up`."""
    source: str
    """The matrix of the source it stands for."""
    linear: nn.Linear
    second: Float[Tensor, "n_in n_in"] | None
    """E[x xᵀ] of its input; None without calibration."""
    following: Float[Tensor, "n_out rank"] | None
    """For the first factor of a pair, the second one: what becomes of its outputs."""


def matrices(block: nn.Module, family: Family, inputs: LayerInputs | None) -> Iterator[Matrix]:
    """Yield a layer's matrices; the caller replaces each before it asks for the next."""
    for group in family.shared_inputs:
        for name in group:
            module = linear_at(block, name)
            second = None if inputs is None else inputs.moments(name).second
            if isinstance(module, LowRankLinear):
                yield from _factors(block, name, module, second)
            elif isinstance(module, nn.Linear):
                yield Matrix(name, name, module, second, None)
        if inputs is not None:
            inputs.changed(group[0])


def _factors(
    block: nn.Module, name: str, pair: LowRankLinear, second: Tensor | None
) -> Iterator[Matrix]:
    if isinstance(pair.down, nn.Linear):
        yield Matrix(f"{name}.down", name, pair.down, second, float_weight(pair.up))
    if isinstance(pair.up, nn.Linear):
        down = float_weight(linear_at(block, f"{name}.down"))
        between = None if second is None else down @ second @ down.T
        yield Matrix(f"{name}.up", name, pair.up, between, None)
