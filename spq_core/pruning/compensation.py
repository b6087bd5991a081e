"""Scores of an MLP's neurons by what the next matrix loses, and how that matrix makes up for them.

x is the input of the matrix W behind the neurons, C = E[x xᵀ] and μ = E[x].
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from spq_core.calibration.inputs import InputMoments
from spq_core.calibration.inverse import inverse_factor

COLUMNS_AT_ONCE = 512


def score_neurons(
    rule: str,
    weight: Float[Tensor, "out n"],
    moments: InputMoments,
    output_weights: Float[Tensor, " out"] | None = None,
) -> Float[Tensor, " n"]:
    """Return how much each input of `weight` counts.

    `wanda`: mean_i |W_ij| · sqrt(E x_j²) (Wanda's metric per structure, as in arXiv:2312.11983).
    `flap`: Var(x_j) · Σ_i W_ij² (FLAP, arXiv:2312.11983), for a bias that makes up for the mean.
    `obs`: Σ_i W_ij² / [C⁻¹]_jj, the output error left after the best update of the other columns
    (optimal brain surgeon; arXiv:2412.18110).

    Args:
        output_weights: how much each output's squared error counts; all the same when left out.
    """
    exact = weight.double()
    if output_weights is not None:
        exact = exact * output_weights.double().sqrt()[:, None]
    energy = moments.second.diagonal().double()
    if rule == "wanda":
        scores = exact.abs().mean(dim=0) * energy.sqrt()
    elif rule == "flap":
        variance = (energy - moments.mean.double().square()).clamp(min=0)
        scores = variance * exact.square().sum(dim=0)
    else:
        uncertainty = inverse_factor(moments.second).square().sum(dim=0)
        scores = exact.square().sum(dim=0) / uncertainty
    return scores.float()


class Compensated(NamedTuple):
    """The kept columns after an update, and the bias if there is one."""

    weight: Float[Tensor, "out k"]
    bias: Float[Tensor, " out"] | None


def compensate(
    rule: str,
    weight: Float[Tensor, "out n"],
    bias: Float[Tensor, " out"] | None,
    kept: Int64[Tensor, " k"],
    moments: InputMoments,
) -> Compensated:
    """Return the columns `kept` and the bias, changed so that outputs stay as they were.

    `bias`: what the removed inputs contribute on average goes into the bias, if there is one.
    `least_squares`: the columns are W C[:, K] C[K, K]⁻¹, the least output error for these inputs;
    with a bias the moments are centred and the bias takes the difference of the means.
    """
    exact, mean = weight.double(), moments.mean.double()
    chosen = exact[:, kept]
    if rule == "least_squares":
        centre = None if bias is None else mean
        chosen = _with_outputs(exact, kept, moments.second, centre)
        factor = inverse_factor(moments.second, kept, mean=centre)
        chosen = (chosen @ factor.T) @ factor
    if bias is not None and rule != "none":
        bias = (bias.double() + exact @ mean - chosen @ mean[kept]).float()
    return Compensated(chosen.float().contiguous(), bias)


def _with_outputs(
    exact: Float[Tensor, "out n"],
    kept: Int64[Tensor, " k"],
    second: Float[Tensor, "n n"],
    mean: Float[Tensor, " n"] | None,
) -> Float[Tensor, "out k"]:
    """W C[:, kept], some columns of C at a time: it is too large for a copy in float64."""
    parts = [exact @ second[:, some].double() for some in torch.split(kept, COLUMNS_AT_ONCE)]
    product = torch.cat(parts, dim=1)
    return product if mean is None else product.addr_(exact @ mean, mean[kept], alpha=-1)
