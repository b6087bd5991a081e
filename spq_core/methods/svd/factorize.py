"""Singular values and truncated factors of a matrix, from one eigendecomposition."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from spq_core.streaming.inverse import DAMPING

LEAST_OUTPUT_WEIGHT = 0.01
"""Of the mean: weights are measured on few tokens."""


class Spectrum(NamedTuple):
    """Singular values and the singular vectors of the matrix's shorter side."""

    singular_values: Float[Tensor, " k"]
    """Non-increasing. The smallest ones carry the squared error of a Gram matrix: use them for
    sums from the top only."""
    vectors: Float[Tensor, "k k"]
    """Columns: left singular vectors if out ≤ in, else right ones."""


class LowRankFactors(NamedTuple):
    """weight ≈ up @ down."""

    up: Float[Tensor, "out r"]
    down: Float[Tensor, "r in"]


def decompose(weight: Float[Tensor, "out in"]) -> Spectrum:
    """Decompose through the Gram matrix of the shorter side, in float64.

    σ_i² are the eigenvalues of W Wᵀ (or Wᵀ W). Two to five times faster than a full SVD at equal
    accuracy of everything that a truncation keeps.
    """
    tall = weight.shape[0] > weight.shape[1]
    side = (weight.T if tall else weight).double()
    eigenvalues, vectors = torch.linalg.eigh(side @ side.T)
    singular_values = eigenvalues.flip(0).clamp(min=0).sqrt()
    return Spectrum(singular_values, vectors.flip(1))


def truncate(weight: Float[Tensor, "out in"], spectrum: Spectrum, rank: int) -> LowRankFactors:
    """Return the best rank-`rank` factors with all singular values on `up`.

    That is the SPQ authors' choice (down = V_rᵀ, up = U_r Σ_r): the columns of `up` then span
    orders of magnitude.

    Shapes:
        weight: the matrix `spectrum` was computed from. rank: 1 ≤ rank ≤ min(out, in).
    """
    vectors = spectrum.vectors[:, :rank]
    exact = weight.double()
    if weight.shape[0] > weight.shape[1]:
        return LowRankFactors((exact @ vectors).float(), vectors.T.float().contiguous())
    values = spectrum.singular_values[:rank]
    inverse = torch.where(values > 0, 1 / values, 0.0)
    down = inverse[:, None] * (vectors.T @ exact)
    return LowRankFactors((vectors * values).float(), down.float())


def decompose_output(
    weight: Float[Tensor, "out in"],
    second_moment: Float[Tensor, "in in"],
    output_weights: Float[Tensor, " out"] | None = None,
    *,
    damping: float = DAMPING,
) -> Spectrum:
    """Decompose the outputs W x: σ_i² and directions are those of D W E[x xᵀ] Wᵀ D, in float64.

    SVD-LLM (arXiv:2403.07378) whitens W by a Cholesky factor of E[x xᵀ] and inverts it again. The
    eigenvectors of the outputs' second moment give the same factors without either, so there is no
    factorisation that can fail; and as they are the optimum for both factors at once, alternating least
    squares has nothing left to refine. The energy of each input counts for more by `damping`, independent of
    the others': else directions that the calibration never saw cost nothing, and other text pays for it.

    Args:
        damping: share of each input's energy; with `extra_damping` the fewer tokens, the more.
        output_weights: how much each output's squared error counts; D is the diagonal of their
            roots, the identity when left out.
    """
    exact = weight.double()
    if output_weights is not None:
        exact = exact * _roots(output_weights)[:, None]
    energy = second_moment.diagonal().double()
    product = exact @ second_moment.double() @ exact.T
    product += damping * (exact * energy) @ exact.T
    eigenvalues, vectors = torch.linalg.eigh(product)
    return Spectrum(eigenvalues.flip(0).clamp(min=0).sqrt(), vectors.flip(1))


def project_outputs(
    weight: Float[Tensor, "out in"],
    outputs: Spectrum,
    rank: int,
    singular_values: str = "down",
    output_weights: Float[Tensor, " out"] | None = None,
) -> LowRankFactors:
    """Return up = D⁻¹ U_r, down = U_rᵀ D W: the outputs' projection on their strongest directions.

    Its squared output error, weighted, is Σ_{i>r} σ_i², the least any rank-r matrix leaves.

    Args:
        outputs, output_weights: from and for `decompose_output`.
        singular_values: `down` as above; `up` moves them to the first factor's columns, `split`
            half of each.
    """
    vectors = outputs.vectors[:, :rank]
    roots = torch.ones_like(vectors[:, 0]) if output_weights is None else _roots(output_weights)
    down = vectors.T @ (weight.double() * roots[:, None])
    up = vectors / roots[:, None]
    values = outputs.singular_values[:rank]
    floor = torch.finfo(torch.float32).eps * values[0]
    moved = values.clamp(min=floor) ** {"down": 0.0, "split": 0.5, "up": 1.0}[singular_values]
    moved = moved if float(values[0]) > 0 else torch.ones_like(moved)
    return LowRankFactors((up * moved).float().contiguous(), (down / moved[:, None]).float())


def _roots(weights: Float[Tensor, " out"]) -> Float[Tensor, " out"]:
    """Square roots; an output that nothing seems to depend on counts a little all the same."""
    mean = weights.double().mean()
    if float(mean) <= 0:
        return torch.ones_like(weights, dtype=torch.float64)
    return (weights.double() / mean).clamp(min=LEAST_OUTPUT_WEIGHT).sqrt()
