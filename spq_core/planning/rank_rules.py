"""Ranks by the rules of published methods, at so many parameters: for comparison with `structure`, which goes by loss per byte.

Each rule has one number that sets the rank of every matrix, and is searched for. A pair that would have no fewer
parameters than its matrix is not made. The factors are the same under every rule: what differs is the ranks.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from spq_core.planning.bisection import largest
from spq_core.planning.structure import SingularDirections

Matrices = Mapping[str, SingularDirections]
Ranks = dict[str, int]
"""Of the matrices that become pairs."""
RankRule = Callable[[float, Matrices], Ranks]
"""More parameters for a larger number, which is between 0 and 1."""
SPREAD = 0.2
"""Between what blocks of most and of least importance keep of their parameters, by `mgaa`; the paper's own mapping is not public."""
LEAST_LOG = 0.1
"""`theoretical` divides by logarithms, which a matrix without loss has none of."""


def ranks_for(
    rule: str, matrices: Matrices, wanted_parameters: float, importance: Mapping[str, float]
) -> Ranks:
    """The most of each matrix that a rule gives for at most `wanted_parameters`, of pairs and whole matrices together.

    Args:
        rule: `uniform`, `pgsvd`, `mgaa` or `theoretical`.
        importance: matrix name → that of its block, for `mgaa`.
    """
    if rule == "mgaa":
        return _search(by_importance(importance), matrices, wanted_parameters)
    simple: dict[str, RankRule] = {
        "uniform": one_share, "pgsvd": one_weight_error, "theoretical": by_theoretical_loss,
    }  # fmt: skip
    return _search(simple[rule], matrices, wanted_parameters)


def one_share(number: float, matrices: Matrices) -> Ranks:
    """The same share of the parameters for every matrix."""
    return _pairs(matrices, {name: _rank_of(one, number) for name, one in matrices.items()})


def one_weight_error(number: float, matrices: Matrices) -> Ranks:
    """One relative error of the weights for all (PGSVD, arXiv:2510.05544, algorithm 1): that many squared singular values stay."""
    return _pairs(
        matrices, {name: _retaining(one.weight_energy, number) for name, one in matrices.items()}
    )


def by_theoretical_loss(number: float, matrices: Matrices) -> Ranks:
    """More for matrices that would lose more at one share (SVD-LLM V2, arXiv:2503.12340, algorithm 2).

    Among matrices of one kind (all query projections, …), the share that goes is in proportion to 1 / ln L, where L is the norm of the
    error that truncation to the common share leaves in the outputs of all calibration tokens.
    """
    ranks: Ranks = {}
    for members in _kinds(matrices):
        losses = {
            name: math.sqrt(_tail(one.output_energy, _rank_of(one, number)))
            for name, one in members.items()
        }
        inverse = {
            name: 1 / max(LEAST_LOG, math.log(loss)) if loss > 1 else 1 / LEAST_LOG
            for name, loss in losses.items()
        }
        mean = sum(inverse.values()) / len(inverse)
        for name, one in members.items():
            gone = min(1.0, (1 - number) * inverse[name] / mean)
            ranks[name] = _rank_of(one, 1 - gone)
    return _pairs(matrices, ranks)


def by_importance(importance: Mapping[str, float]) -> RankRule:
    """More for blocks that turn their input more (MGAA, arXiv:2507.03294).

    A block (an attention or an MLP) keeps a share of its parameters that is affine in its importance, `SPREAD` apart between the
    least and the most important; its matrices keep one share of their outputs' energy. The mapping is ours.

    Args:
        importance: matrix name → 1 − mean cosine of its block's input and output.
    """
    low, high = min(importance.values()), max(importance.values())
    width = (high - low) or 1.0

    def rule(number: float, matrices: Matrices) -> Ranks:
        ranks: Ranks = {}
        blocks: dict[float, dict[str, SingularDirections]] = {}
        for name, one in matrices.items():
            blocks.setdefault(importance.get(name, (low + high) / 2), {})[name] = one
        for value, members in blocks.items():
            share = number + SPREAD * ((value - low) / width - 0.5)
            whole = sum(one.n_out * one.n_in for one in members.values())
            ranks |= _search(_one_output_error, members, min(max(share, 0.0), 1.0) * whole)
        return ranks

    return rule


def _one_output_error(number: float, matrices: Matrices) -> Ranks:
    return _pairs(
        matrices, {name: _retaining(one.output_energy, number) for name, one in matrices.items()}
    )


def _search(rule: RankRule, matrices: Matrices, wanted_parameters: float) -> Ranks:
    if parameters(matrices, {}) <= wanted_parameters:
        return {}
    found = largest(
        lambda number: parameters(matrices, rule(number, matrices)) <= wanted_parameters, 0.0, 1.0
    )
    return rule(found, matrices)


def parameters(matrices: Matrices, ranks: Mapping[str, int]) -> int:
    """Of all of them, where those with a rank are pairs."""
    return sum(
        ranks[name] * (one.n_out + one.n_in) if name in ranks else one.n_out * one.n_in
        for name, one in matrices.items()
    )


def _pairs(matrices: Matrices, ranks: Mapping[str, int]) -> Ranks:
    """Those that are smaller than their matrix; each has a rank of one at least."""
    return {
        name: max(1, rank)
        for name, rank in ranks.items()
        if max(1, rank) * (matrices[name].n_out + matrices[name].n_in)
        < matrices[name].n_out * matrices[name].n_in
    }


def _rank_of(matrix: SingularDirections, share: float) -> int:
    """The largest rank whose pair has at most a share of the matrix's parameters."""
    return int(share * matrix.n_out * matrix.n_in / (matrix.n_out + matrix.n_in))


def _retaining(energy: Iterable[float], share: float) -> int:
    """The smallest rank that keeps a share of the squared singular values."""
    sums = np.cumsum(np.asarray(tuple(energy)))
    return int(np.searchsorted(sums, share * sums[-1])) + 1


def _tail(energy: tuple[float, ...], rank: int) -> float:
    return sum(energy[rank:])


def _kinds(matrices: Matrices) -> Iterable[dict[str, SingularDirections]]:
    """Matrices that have the same name in their layers."""
    found: dict[str, dict[str, SingularDirections]] = {}
    for name, one in matrices.items():
        found.setdefault(re.sub(r"\.\d+\.", ".*.", name), {})[name] = one
    return found.values()
