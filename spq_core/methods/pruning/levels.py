"""What each number of neurons would cost an MLP, in bytes and in expected loss."""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from spq_core.methods.pruning.compensation import compensate, score_neurons
from spq_core.methods.pruning.settings import PruneSettings
from spq_core.planning.levels import Options
from spq_core.streaming.moments import InputMoments

SHARES = tuple(twentieth / 20 for twentieth in range(4, 21))
"""Of an MLP's neurons that may stay."""


def counts_of(neurons: int) -> tuple[int, ...]:
    """Numbers of neurons that are tried; the last is all."""
    return tuple(sorted({max(1, round(share * neurons)) for share in SHARES}))


def neuron_options(
    weight: Float[Tensor, "out n"],
    output_weights: Float[Tensor, " out"],
    moments: InputMoments,
    bytes_each: float,
) -> Options:
    """Bytes, losses and distances of an MLP at each number of neurons; those of least loss go first.

    Args:
        weight: of the matrix behind the neurons.
        output_weights: E[g_i²] of its outputs.
        bytes_each: of a neuron, over all matrices.
    """
    scores = 0.5 * score_neurons("obs", weight, moments, output_weights).double()
    energy = moments.second_moment.diagonal().double()
    own = 0.5 * (output_weights.double() @ weight.double().square()) * energy
    order = scores.argsort()
    lost, moved = (torch.cat([part.new_zeros(1), part[order].cumsum(0)]) for part in (scores, own))
    counts = counts_of(len(scores))
    gone = [len(scores) - count for count in counts]
    return Options(
        counts, tuple(bytes_each * count for count in counts),
        tuple(float(lost[number]) for number in gone), tuple(float(moved[number]) for number in gone),
        float(own.sum()),
    )  # fmt: skip


def pruned_at(
    weight: Float[Tensor, "out n"],
    output_weights: Float[Tensor, " out"],
    moments: InputMoments,
    settings: PruneSettings,
) -> Iterator[tuple[int, Float[Tensor, "out n"]]]:
    """The matrix behind the neurons at each number of them: columns of those that go are zero, the others are updated as the stage does.

    A bias that makes up for what goes is left out.
    """
    scores = score_neurons(settings.score, weight, moments, output_weights)
    for count in counts_of(len(scores)):
        kept = scores.topk(count).indices.sort().values
        changed = torch.zeros_like(weight)
        changed[:, kept] = compensate(settings.update, weight, None, kept, moments).weight
        yield count, changed
