"""Attention heads in the groups that can go: a key-value head with the query heads that read it."""

from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from spq_core.formats.slicing import float_weight, keep_columns, keep_rows, linear_at
from spq_core.models.family import Family
from spq_core.streaming.inverse import inverse_factor


def groups_of(layer: nn.Module, family: Family) -> int:
    """How many groups of heads a decoder layer has."""
    attention: Any = layer.get_submodule(family.attention[0].rpartition(".")[0])
    keys = float_weight(linear_at(layer, family.attention[1])).shape[0]
    return int(keys // attention.head_dim)


def score_groups(
    weight: Float[Tensor, "out n"],
    second_moment: Float[Tensor, "n n"],
    groups: int,
    output_weights: Float[Tensor, " out"] | None = None,
) -> Float[Tensor, " groups"]:
    """Return the output error each group of inputs leaves after the best update of the others.

    tr(W_b [C⁻¹]_bb⁻¹ W_bᵀ) for the block b of columns: optimal brain surgeon for structures
    (arXiv:2412.18110).

    Args:
        weight: the output projection; its columns come group by group.
        output_weights: how much each output counts.
    """
    exact = weight.double()
    if output_weights is not None:
        exact = exact * output_weights.double().sqrt()[:, None]
    factor = inverse_factor(second_moment)
    width = weight.shape[1] // groups
    scores = []
    for index in range(groups):
        block = slice(index * width, (index + 1) * width)
        columns = exact[:, block].T
        inverse = factor[:, block].T @ factor[:, block]
        scores.append((columns * torch.linalg.solve(inverse, columns)).sum())
    return torch.stack(scores).float()


def columns_of(kept: Int64[Tensor, " k"], groups: int, size: int) -> Int64[Tensor, " columns"]:
    """Indices, of `size` outputs or inputs that come group by group, of the groups `kept`."""
    width = size // groups
    return (kept[:, None] * width + torch.arange(width, device=kept.device)).flatten()


def cut_heads(layer: nn.Module, family: Family, kept: Int64[Tensor, " k"], groups: int) -> None:
    """Keep the groups `kept`: rows of query, key and value, columns of the output projection."""
    for name in family.attention[:-1]:
        linear = linear_at(layer, name)
        rows = columns_of(kept, groups, float_weight(linear).shape[0])
        layer.set_submodule(name, keep_rows(linear, rows))
    name = family.attention[-1]
    linear = linear_at(layer, name)
    columns = columns_of(kept, groups, linear.in_features)
    layer.set_submodule(name, keep_columns(linear, columns))
