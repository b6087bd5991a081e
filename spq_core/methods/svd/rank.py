"""Choose how many singular directions of a weight to keep."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

SELECTION_MIN_ELEMENTS = 1_000
REPLACEMENT_MIN_ELEMENTS = 5_000
MIN_REDUCTION = 0.1
MAX_RELATIVE_RANK = 0.8


def smallest_rank_retaining(singular_values: Float[Tensor, " k"], energy: float) -> int:
    """Return the smallest rank r that keeps at least `energy` of the squared spectrum.

    The best rank-r approximation leaves a squared Frobenius error equal to the tail sum of squared
    singular values (Eckart & Young 1936, doi:10.1007/BF02288367), so the rule is: smallest r with
    Σ_{i≤r} σ_i² / Σ_i σ_i² ≥ energy. SPQ calls this variance-retained SVD (arXiv:2602.18420).

    Shapes:
        singular_values: (k,), non-increasing, k = min(out_features, in_features).

    Args:
        energy: fraction in (0, 1].

    Returns:
        Rank in [1, k]; 1 for an all-zero spectrum.
    """
    squared = singular_values.double().square()
    cumulative = squared.cumsum(dim=0)
    # Scale the target, not the sums: a quotient can end at 0.999… and push the rank past k.
    return int(torch.searchsorted(cumulative, energy * cumulative[-1])) + 1


class RankDecision(NamedTuple):
    """What the authors' rules make of one matrix."""

    rank_by_variance: int
    rank: int
    factorise: bool
    reason: str
    """Why not, when `factorise` is false."""


def decide_rank(
    singular_values: Float[Tensor, " k"], shape: tuple[int, int], energy: float
) -> RankDecision:
    """Apply the SPQ authors' rank and skip rules to a matrix of `shape` (out, in).

    Their code stores a reduction ratio ρ = max(0.1, 1 − r/k) and takes int((1 − ρ)·k) again, which
    can lose one rank to rounding; that is repeated here, so that results can be compared matrix by
    matrix. A pair is made only if the rank is at most 0.8·k and the pair has fewer elements.
    """
    n_out, n_in = shape
    k = min(shape)
    by_variance = smallest_rank_retaining(singular_values, energy)
    if n_out * n_in < SELECTION_MIN_ELEMENTS:
        return RankDecision(by_variance, k, factorise=False, reason="fewer than 1000 elements")
    reduction = max(MIN_REDUCTION, min(1 - by_variance / k, 1.0))
    rank = max(1, int((1 - reduction) * k))
    if n_out * n_in < REPLACEMENT_MIN_ELEMENTS:
        return RankDecision(by_variance, rank, factorise=False, reason="fewer than 5000 elements")
    if rank / k > MAX_RELATIVE_RANK:
        return RankDecision(by_variance, rank, factorise=False, reason="rank above 0.8 of full")
    if rank * (n_out + n_in) >= n_out * n_in:
        return RankDecision(
            by_variance, rank, factorise=False, reason="a pair would not be smaller"
        )
    return RankDecision(by_variance, rank, factorise=True, reason="")
