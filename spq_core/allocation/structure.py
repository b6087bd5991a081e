"""Which directions and neurons are worth their bytes, at one price for all.

A direction of a matrix (a rank) and a neuron of an MLP are kept if leaving them out would cost more
loss than their bytes would save elsewhere. At the price at which bytes are exchanged for bits (see
`rules`), rank, neurons and bits come out of one optimisation.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import log

import numpy as np

STEPS_OF_SEARCH = 80


def price_at(level: float) -> float:
    """Loss per byte where lattices have this level.

    A weight adds level / 24 to the loss, and one bit less makes that four times as much: its slope
    is 2 ln 2 · level / 24 per bit.
    """
    return 8 * 2 * log(2) * level / 24


@dataclass(frozen=True, slots=True)
class Directions:
    """A matrix that may become a low-rank pair."""

    losses: tuple[float, ...]
    """Expected loss of leaving out each direction, largest first."""
    n_out: int
    n_in: int
    bytes_per_parameter: float

    def rank_at(self, price: float) -> int | None:
        """The rank with the least loss plus price of its bytes; None if the whole matrix has less."""
        tails = np.append(np.cumsum(self.losses[::-1])[::-1], 0.0)
        parameters = np.arange(len(tails)) * (self.n_out + self.n_in)
        costs = tails + price * self.bytes_per_parameter * parameters
        rank = max(1, int(np.argmin(costs)))
        whole = price * self.bytes_per_parameter * self.n_out * self.n_in
        return rank if costs[rank] < whole else None

    def parameters_at(self, price: float) -> int:
        """Parameters at that price."""
        rank = self.rank_at(price)
        return self.n_out * self.n_in if rank is None else rank * (self.n_out + self.n_in)


@dataclass(frozen=True, slots=True)
class Neurons:
    """The neurons of one MLP."""

    losses: tuple[float, ...]
    """Expected loss of leaving out each neuron, in any order."""
    parameters: int
    """Of one neuron, over all its matrices."""
    bytes_per_parameter: float

    def kept_at(self, price: float) -> int:
        """How many are worth their bytes; at least one."""
        worth = price * self.bytes_per_parameter * self.parameters
        return max(1, sum(loss > worth for loss in self.losses))

    def parameters_at(self, price: float) -> int:
        """Parameters at that price."""
        return self.kept_at(price) * self.parameters


@dataclass(frozen=True, slots=True)
class Structure:
    """The shape a model gets."""

    ranks: dict[str, int]
    """Matrices that become pairs, and their rank."""
    neurons: dict[str, int]
    """Per decoder layer, how many neurons stay."""


def decide(
    matrices: Mapping[str, Directions], layers: Mapping[str, Neurons], price: float
) -> Structure:
    """What is worth its bytes at a price, in nats per byte."""
    ranks = {name: matrix.rank_at(price) for name, matrix in matrices.items()}
    return Structure(
        ranks={name: rank for name, rank in ranks.items() if rank is not None},
        neurons={name: layer.kept_at(price) for name, layer in layers.items()},
    )


def price_for_bytes(
    matrices: Mapping[str, Directions], layers: Mapping[str, Neurons], wanted_bytes: float
) -> float:
    """The lowest price at which all these take at most `wanted_bytes`."""
    low, high = -80.0, 20.0
    for _ in range(STEPS_OF_SEARCH):
        middle = (low + high) / 2
        if structure_bytes(matrices, layers, 2.0**middle) > wanted_bytes:
            low = middle
        else:
            high = middle
    return float(2.0**high)


def structure_bytes(
    matrices: Mapping[str, Directions], layers: Mapping[str, Neurons], price: float
) -> float:
    """Bytes of all of them at a price."""
    parts: list[Directions | Neurons] = [*matrices.values(), *layers.values()]
    return sum(part.bytes_per_parameter * part.parameters_at(price) for part in parts)
