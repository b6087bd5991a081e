"""What each rank would cost a matrix, in bytes and in expected loss."""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from spq_core.methods.svd.factorize import Spectrum, decompose_output, project_outputs
from spq_core.planning.levels import Options
from spq_core.streaming.inverse import DAMPING
from spq_core.streaming.moments import InputMoments
from spq_core.streaming.shrinkage import extra_damping

SHARES = tuple(tenth / 10 for tenth in range(1, 10))
"""Of a matrix's parameters that a pair may have."""


def ranks_of(n_out: int, n_in: int) -> tuple[int, ...]:
    """Ranks of a matrix that are tried; the last is that of the whole matrix, which then is no pair."""
    pairs = {int(share * n_out * n_in / (n_out + n_in)) for share in SHARES} - {0}
    return (*sorted(pairs), min(n_out, n_in))


def rank_options(
    weight: Float[Tensor, "out n_in"],
    output_weights: Float[Tensor, " out"],
    moments: InputMoments,
    item_bytes: float,
) -> Options:
    """Bytes, losses and distances of a matrix at each of its ranks.

    Args:
        output_weights: E[g_i²], how much each output counts: an error ΔW costs ½ Σ_i E[g_i²] ΔW_i E[x xᵀ] ΔW_iᵀ nats per token.
    """
    n_out, n_in = weight.shape
    outputs = _outputs(weight, output_weights, moments)
    squared = outputs.singular_values.square()[: min(n_out, n_in)]
    lost = (
        0.5 * float(output_weights.mean()) * squared
    )  # spectra count outputs relative to their mean
    energy, counts = moments.second_moment.diagonal().double(), output_weights.double()

    def distance(difference: Tensor) -> float:
        return 0.5 * float(counts @ (difference.double().square() @ energy))

    ranks = ranks_of(n_out, n_in)
    sizes, losses, distances = [], [], []
    for rank, low in _each(weight, outputs, output_weights, ranks):
        whole = rank == ranks[-1]
        sizes.append(item_bytes * (n_out * n_in if whole else rank * (n_out + n_in)))
        losses.append(0.0 if whole else float(lost[rank:].sum()))
        distances.append(0.0 if whole else distance(weight - low))
    return Options(ranks, tuple(sizes), tuple(losses), tuple(distances), distance(weight))


def truncated_at(
    weight: Float[Tensor, "out n_in"], output_weights: Float[Tensor, " out"], moments: InputMoments
) -> Iterator[tuple[int, Float[Tensor, "out n_in"]]]:
    """A matrix at each of its ranks."""
    outputs = _outputs(weight, output_weights, moments)
    return _each(weight, outputs, output_weights, ranks_of(*weight.shape))


def _outputs(weight: Tensor, output_weights: Tensor, moments: InputMoments) -> Spectrum:
    damping = DAMPING + extra_damping(moments)
    return decompose_output(weight, moments.second_moment, output_weights, damping=damping)


def _each(
    weight: Tensor, outputs: Spectrum, output_weights: Tensor, ranks: tuple[int, ...]
) -> Iterator[tuple[int, Tensor]]:
    for rank in ranks[:-1]:
        factors = project_outputs(weight, outputs, rank, output_weights=output_weights)
        yield rank, factors.up @ factors.down
    yield ranks[-1], torch.as_tensor(weight)
