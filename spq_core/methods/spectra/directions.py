"""A matrix as the sum of its singular directions."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from spq_core.methods.svd.factorize import decompose


class Directions(NamedTuple):
    """weight = up @ down, one column of `up` and one row of `down` a direction, by falling singular value."""

    up: Float[Tensor, "out k"]
    down: Float[Tensor, "k in"]
    singular_values: Float[Tensor, " k"]


def directions_of(weight: Float[Tensor, "out in"]) -> Directions:
    """All k = min(out, in) of them; singular values are on the factor of the longer side.

    The shorter side's vectors are orthonormal to float64, and the other factor is the weight seen along them: so the product is the
    weight to the last bits of float32, whatever the smallest singular values are.
    """
    spectrum = decompose(weight)
    exact, vectors = weight.double(), spectrum.vectors
    if weight.shape[0] > weight.shape[1]:
        up, down = exact @ vectors, vectors.T
    else:
        up, down = vectors, vectors.T @ exact
    return Directions(
        up.float().contiguous(), down.float().contiguous(), spectrum.singular_values.float()
    )


def chosen(
    directions: Directions, kept: Tensor, factors: Float[Tensor, " k"] | None = None
) -> tuple[Float[Tensor, "out r"], Float[Tensor, "r in"]]:
    """The pair of some directions, each multiplied by its factor."""
    up = directions.up[:, kept]
    if factors is not None:
        up = up * factors[kept]
    return up, directions.down[kept]


def with_adapter(
    pair: tuple[Tensor, Tensor], adapter: tuple[Tensor, Tensor] | None
) -> tuple[Float[Tensor, "out r"], Float[Tensor, "r in"]]:
    """A pair with an adapter's columns beside its own: the same product and their sum."""
    if adapter is None:
        return pair
    (up, down), (more_up, more_down) = pair, adapter
    return torch.cat([up, more_up], dim=1), torch.cat([down, more_down])
