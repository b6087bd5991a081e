"""Choose an MLP's neurons and remove the others from all coupled matrices."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from spq_core.formats.slicing import keep_columns, keep_rows, linear_at
from spq_core.methods.pruning.ratios import neurons_kept
from spq_core.models.family import Family


def strongest_neurons(
    scores: Float[Tensor, " n"], ratio: float, multiple: int = 1
) -> Int64[Tensor, " k"]:
    """Return the indices of the int(n·(1 − ratio)) highest scores, ascending; at least one.

    Their number is rounded up to a multiple of `multiple`, or to all.
    """
    kept = neurons_kept(scores.numel(), ratio, multiple)
    return torch.topk(scores, kept).indices.sort().values


def rows_of(kept: Int64[Tensor, " k"], neurons: int, family: Family) -> Int64[Tensor, " rows"]:
    """Rows of an input matrix that belong to the neurons `kept`, of `neurons` in all."""
    return torch.cat([kept + part * neurons for part in range(family.rows_per_neuron)])


def cut_mlp(layer: nn.Module, family: Family, kept: Int64[Tensor, " k"]) -> None:
    """Keep the neurons `kept` in a decoder layer: rows of the inputs, columns of the output."""
    rows = rows_of(kept, linear_at(layer, family.mlp_out).in_features, family)
    for name in family.mlp_in:
        layer.set_submodule(name, keep_rows(linear_at(layer, name), rows))
    layer.set_submodule(family.mlp_out, keep_columns(linear_at(layer, family.mlp_out), kept))
