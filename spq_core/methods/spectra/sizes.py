"""Which directions stay at a size: one order of all of them, for all matrices together. Free of torch."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.floating]


@dataclass(frozen=True, slots=True)
class Factored:
    """A matrix that may become a pair."""

    scores: Scores
    """Of its directions; what is lower goes first."""
    n_out: int
    n_in: int
    adapter_rank: int = 0
    """Columns that a pair has besides."""

    @property
    def whole(self) -> int:
        """Parameters of the matrix itself."""
        return self.n_out * self.n_in

    def parameters(self, rank: int) -> int:
        """With so many directions: those of the pair, or of the matrix where it is no larger."""
        return min(self.whole, (max(1, rank) + self.adapter_rank) * (self.n_out + self.n_in))

    def is_pair(self, rank: int) -> bool:
        """Whether so many directions are worth making a pair of."""
        return self.parameters(rank) < self.whole


def ranks_within(matrices: Mapping[str, Factored], wanted_parameters: float) -> dict[str, int]:
    """The most directions, in the order of all scores, that take at most so many parameters.

    Where nothing fits, every matrix keeps one direction. Equal scores go by the order of matrices, then of directions.

    Returns:
        Matrix → how many of its directions stay.
    """
    order = _in_order(matrices)
    low, high = 0, len(order)
    while low < high:
        middle = (low + high + 1) // 2
        ranks = _ranks(matrices, order[:middle])
        fits = sum(one.parameters(ranks[name]) for name, one in matrices.items())
        low, high = (middle, high) if fits <= wanted_parameters else (low, middle - 1)
    return _ranks(matrices, order[:low])


def best_first(scores: Scores) -> NDArray[np.intp]:
    """Directions by falling score, equal ones as they stand."""
    return np.argsort(-scores, kind="stable")


def _in_order(matrices: Mapping[str, Factored]) -> NDArray[np.intp]:
    """For each direction of all matrices, best first, the number of its matrix."""
    owners = np.concatenate(
        [np.full(len(one.scores), number) for number, one in enumerate(matrices.values())]
    )
    scores = np.concatenate([one.scores for one in matrices.values()])
    return np.asarray(owners[best_first(scores)])


def _ranks(matrices: Mapping[str, Factored], owners: NDArray[np.intp]) -> dict[str, int]:
    counts = np.bincount(owners, minlength=len(matrices))
    return {name: int(count) for name, count in zip(matrices, counts, strict=True)}
