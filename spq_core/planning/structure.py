"""Which directions, neurons and heads are worth their bytes, at one price for all.

A direction of a matrix (a rank), a neuron of an MLP and a group of heads are kept if leaving them out would cost more
loss than their bytes would save elsewhere. At the price at which bytes are exchanged for bits (see
`rules`), rank, neurons and bits come out of one optimisation.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from spq_core.planning.bisection import largest


def price_at(distortion: float) -> float:
    """Loss per byte where lattices have this distortion.

    A weight adds distortion / 24 to the loss, and one bit less makes that four times as much: its slope
    is 2 ln 2 · distortion / 24 per bit.
    """
    return 8 * 2 * math.log(2) * distortion / 24


@dataclass(frozen=True, slots=True)
class SingularDirections:
    """A matrix that may become a low-rank pair."""

    losses: tuple[float, ...]
    """Expected loss of leaving out each direction, largest first."""
    n_out: int
    n_in: int
    bytes_per_parameter: float
    weight_energy: tuple[float, ...] = ()
    """Squared singular values of the weight, for rules that go by them."""
    output_energy: tuple[float, ...] = ()
    """Of the outputs of all calibration tokens together, likewise."""

    def best_at(self, price: float) -> tuple[int, float]:
        """The rank of the best pair that is smaller than the matrix, and what it costs.

        The cost is loss plus price of its bytes, less the price of the whole matrix's: below zero
        if the pair is worth making.
        """
        largest = max(1, (self.n_out * self.n_in - 1) // (self.n_out + self.n_in))
        tails = np.append(np.cumsum(self.losses[::-1])[::-1], 0.0)[: largest + 1]
        parameters = np.arange(len(tails)) * (self.n_out + self.n_in)
        costs = tails + price * self.bytes_per_parameter * (parameters - self.n_out * self.n_in)
        rank = 1 + int(np.argmin(costs[1:]))
        return rank, float(costs[rank])

    def rank_at(self, price: float) -> int | None:
        """The rank of a pair that is worth making at a price; None if none is."""
        rank, cost = self.best_at(price)
        return rank if cost < 0 else None

    def parameters_at(self, price: float) -> int:
        """Parameters at that price."""
        rank = self.rank_at(price)
        return self.n_out * self.n_in if rank is None else rank * (self.n_out + self.n_in)


@dataclass(frozen=True, slots=True)
class PrunableUnits:
    """Parts of a layer that can go one by one: an MLP's neurons, or groups of attention heads."""

    losses: tuple[float, ...]
    """Expected loss of leaving out each, in any order."""
    parameters: int
    """Of one, over all its matrices."""
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

    ranks: dict[str, int] = field(default_factory=dict)
    """Matrices that become pairs, and their rank."""
    neurons: dict[str, int] = field(default_factory=dict)
    """Per decoder layer, how many neurons stay."""
    heads: dict[str, int] = field(default_factory=dict)
    """Per decoder layer, how many groups of heads stay."""
    widths: dict[str, int] = field(default_factory=dict)
    """Matrices whose codes have a width of their own."""


def ranks_at(
    matrices: Mapping[str, SingularDirections], price: float, min_factorized_share: float = 0.0
) -> dict[str, int]:
    """The matrices worth factorising at a price, in nats per byte, and their ranks.

    At least the share `min_factorized_share` of them all, those that cost least, is among them.
    """
    best = {name: matrix.best_at(price) for name, matrix in matrices.items()}
    ranked = sorted(best, key=lambda name: best[name][1])
    forced = set(ranked[: math.ceil(min_factorized_share * len(ranked))])
    return {name: rank for name, (rank, cost) in best.items() if cost < 0 or name in forced}


def kept_at(layers: Mapping[str, PrunableUnits], price: float) -> dict[str, int]:
    """Per layer, how many units are worth their bytes at a price."""
    return {name: layer.kept_at(price) for name, layer in layers.items()}


def kept_without(layers: Mapping[str, PrunableUnits], ratio: float) -> dict[str, int]:
    """Per layer, how many units stay when the share `ratio` of all goes, those of least loss first.

    Each layer keeps its strongest unit.
    """
    ranked = sorted(
        (loss, name) for name, layer in layers.items() for loss in sorted(layer.losses)[:-1]
    )
    total = sum(len(layer.losses) for layer in layers.values())
    gone = Counter(name for _, name in ranked[: int(ratio * total)])
    return {name: len(layers[name].losses) - gone[name] for name in layers}


def price_for_bytes(
    parts: Sequence[SingularDirections | PrunableUnits], wanted_bytes: float
) -> float:
    """The lowest price at which all these take at most `wanted_bytes`."""
    fits = largest(
        lambda octaves: structure_bytes(parts, 2.0**-octaves) <= wanted_bytes, -20.0, 80.0
    )
    return float(2.0**-fits)


def structure_bytes(parts: Sequence[SingularDirections | PrunableUnits], price: float) -> float:
    """Bytes of all of them at a price."""
    return sum(part.bytes_per_parameter * part.parameters_at(price) for part in parts)
