"""Scores of an MLP's neurons by what the next matrix loses, and how that matrix makes up for them.

x is the input of the matrix W behind the neurons, C = E[x xᵀ] and μ = E[x].
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from spq_core.streaming.inverse import DAMPING, inverse_factor
from spq_core.streaming.moments import InputMoments
from spq_core.streaming.shrinkage import extra_damping

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
    energy = moments.second_moment.diagonal().double()
    if rule == "wanda":
        scores = exact.abs().mean(dim=0) * energy.sqrt()
    elif rule == "flap":
        variance = (energy - moments.mean.double().square()).clamp(min=0)
        scores = variance * exact.square().sum(dim=0)
    else:
        uncertainty = inverse_factor(moments.second_moment).square().sum(dim=0)
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
    `least_squares`: with K kept and R removed, the columns are W_K + W_R C_RK (C_KK + D)⁻¹, the least
    output error for these inputs. The damping D (of `inverse`, and more the fewer tokens C was measured on,
    see `shrinkage`) pulls towards the columns as they were, so where nothing is removed nothing changes.
    With a bias the moments are centred, and the bias takes the difference of the means.
    """
    exact, mean = weight.double(), moments.mean.double()
    chosen = exact[:, kept]
    if kept.numel() == weight.shape[1]:
        return Compensated(weight.float().contiguous(), bias)
    if rule == "least_squares":
        centre = None if bias is None else mean
        product = _lost_outputs(exact, kept, moments.second_moment, centre)
        damping = DAMPING + extra_damping(moments)
        factor = inverse_factor(moments.second_moment, kept, mean=centre, damping=damping)
        chosen = chosen + (product @ factor.T) @ factor
    if bias is not None and rule != "none":
        bias = (bias.double() + exact @ mean - chosen @ mean[kept]).float()
    return Compensated(chosen.float().contiguous(), bias)


def _lost_outputs(
    exact: Float[Tensor, "out n"],
    kept: Int64[Tensor, " k"],
    second_moment: Float[Tensor, "n n"],
    mean: Float[Tensor, " n"] | None,
) -> Float[Tensor, "out k"]:
    """W_R C_RK, some columns of C at a time: it is too large for a copy in float64."""
    gone = torch.ones(exact.shape[1], dtype=torch.bool, device=exact.device)
    gone[kept] = False
    removed = exact[:, gone]
    parts = [
        removed @ second_moment[:, some][gone].double()
        for some in torch.split(kept, COLUMNS_AT_ONCE)
    ]
    product = torch.cat(parts, dim=1)
    return product if mean is None else product.addr_(removed @ mean[gone], mean[kept], alpha=-1)
