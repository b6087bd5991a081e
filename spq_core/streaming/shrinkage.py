"""How far a second moment that was measured on few tokens is to be trusted.

With C = E[x xᵀ] estimated from T tokens, a correlation r_ij is off by up to 1 / √T. Over n inputs
those errors add up: directions that the calibration never saw look as if nothing passed through them. The
estimate with the least expected squared error keeps (1 − ρ) of every correlation, with

    ρ = Σ_{i≠j} Var(r_ij) / Σ_{i≠j} r_ij²,    Var(r_ij) ≤ 1 / T

(Schäfer & Strimmer 2005, doi:10.2202/1544-6115.1175, target D, on correlations; with the variance that an input
without anything in common with others has, which is the largest). Up to a factor that cancels where C is
solved with, that is C with ρ / (1 − ρ) of each input's energy added to it.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from spq_core.streaming.moments import InputMoments

LARGEST_SHARE = 0.98
"""Of correlations that are given up; with less of them left, nothing is fitted to others."""
TOKENS_PER_SAMPLE = 16.0
"""So many tokens count as one: neighbours say much the same, inputs have heavy tails, and other text is other
text. Of 4, 8, 16 and 32 the one with the least error on tokens not seen, of the same text and of another
(MLPs of SmolLM2, docs/explanation/calibration.md)."""
ROWS_AT_ONCE = 512


def shrinkage(moments: InputMoments) -> float:
    """Share ρ in [0, 0.98] of every correlation that is noise; 0 where the number of tokens is not known."""
    if moments.tokens == 0:
        return 0.0
    independent = max(1.0, moments.tokens / TOKENS_PER_SAMPLE)
    squared, pairs = _sums(moments.second_moment)
    if squared <= 0:
        return LARGEST_SHARE
    return min(LARGEST_SHARE, pairs / independent / squared)


def extra_damping(moments: InputMoments) -> float:
    """The same as a share of each input's energy to be added to it: ρ / (1 − ρ)."""
    share = shrinkage(moments)
    return share / (1 - share)


def _sums(second_moment: Float[Tensor, "n n"]) -> tuple[float, float]:
    """Σ r² over pairs of different inputs that are ever active, some rows at a time, and their number."""
    energy = second_moment.diagonal().double().clamp(min=0)
    inverse = torch.where(energy > 0, energy.rsqrt(), 0.0)
    alive = float((energy > 0).sum())
    squared = -alive  # every input with itself
    for start in range(0, len(energy), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        part = second_moment[rows].double() * inverse[rows, None] * inverse
        squared += float(part.square_().sum())
    return squared, alive * (alive - 1)
