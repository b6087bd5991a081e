"""Masks over singular directions, and what they learn from a step."""

import torch
from jaxtyping import Float
from torch import Tensor

from spq_core.methods.spectra.directions import Directions


def straight_through(mask: Float[Tensor, " k"]) -> Float[Tensor, " k"]:
    """1 where a mask is open, else 0; the gradient passes to open masks as if they were multiplied in (ACIP, section 3.2).

    A closed mask gets none, so it stays closed.
    """
    opened = torch.relu(mask)
    return opened + ((mask > 0).to(mask.dtype) - opened).detach()


def next_scores(scores: Float[Tensor, " k"], mask: Float[Tensor, " k"]) -> Float[Tensor, " k"]:
    """The order in which masks close (ACIP, section 3.3): an open one has its value; one that closes now 0; closed ones lose 1 a step.

    So whatever closed first comes last.
    """
    return torch.where(mask > 0, mask, torch.where(scores > 0, 0.0, scores - 1.0))


def without_ties(scores: Float[Tensor, " k"], energy: Float[Tensor, " k"]) -> Float[Tensor, " k"]:
    """Scores in which masks that closed in one step are ordered by the energy of their directions; all else stands as it was."""
    least = torch.finfo(energy.dtype).tiny
    return torch.where(scores <= 0, scores + 0.5 * energy / energy.max().clamp(min=least), scores)


def relative_energy(directions: Directions) -> Float[Tensor, " k"]:
    """Squared singular values over their sum: an order of all matrices' directions without any training."""
    squared = directions.singular_values.square()
    return squared / squared.sum().clamp(min=torch.finfo(squared.dtype).tiny)
