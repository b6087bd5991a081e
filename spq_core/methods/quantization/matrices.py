"""The matrices of a decoder layer in the order data meets them, each with what it receives."""

from collections.abc import Iterator
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor, nn

from spq_core.formats.low_rank.linear import factors_of
from spq_core.formats.slicing import float_weight, is_float, linear_at
from spq_core.models.family import Family, steps_in
from spq_core.streaming.inputs import LayerInputs


class Matrix(NamedTuple):
    """A floating-point matrix about to be quantized."""

    name: str
    """Within the layer; factors of a pair end in `.down` and `.up`."""
    source: str
    """The matrix of the source it stands for."""
    linear: nn.Linear
    second_moment: Float[Tensor, "n_in n_in"] | None
    """E[x xᵀ] of its input; None without calibration."""
    following: Float[Tensor, "n_out rank"] | None
    """For the first factor of a pair, the second one: what becomes of its outputs."""


def matrices(
    block: nn.Module, family: Family, inputs: LayerInputs | None
) -> Iterator[list[Matrix]]:
    """Yield a layer's matrices, those that share an input together.

    The caller replaces what it was given before it asks for the next.
    """
    if inputs is None:
        present = {name for name, _ in block.named_modules()}
        steps = (
            *steps_in(family, present),
            *(((name,),) for name in family.others if name in present),
        )
    else:
        steps = inputs.steps
    for group in (group for step in steps for group in step):
        modules = {name: linear_at(block, name) for name in group}
        second_moment = None if inputs is None else inputs.moments(group[0]).second_moment
        pairs = {name: pair for name, one in modules.items() if (pair := factors_of(one))}
        together = [
            Matrix(name, name, one, second_moment, None)
            for name, one in modules.items()
            if is_float(one)
        ]
        together += [
            Matrix(f"{name}.down", name, down, second_moment, float_weight(up))
            for name, (down, up) in pairs.items()
            if is_float(down)
        ]
        if together:
            yield together
        for name, (_, up) in pairs.items():
            if is_float(up):
                down = float_weight(linear_at(block, f"{name}.down"))
                between = None if second_moment is None else down @ second_moment @ down.T
                yield [Matrix(f"{name}.up", name, up, between, None)]
        if inputs is not None:
            inputs.changed(group[0])
