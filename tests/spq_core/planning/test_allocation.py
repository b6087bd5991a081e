import itertools

import pytest
import torch

from spq_core.planning.curve import curve_of
from spq_core.planning.rules import (
    by_importance,
    choose_dense,
    equal_bits,
    equal_error,
    expected_loss,
    one_distortion,
    search,
    total_bytes,
)
from spq_core.planning.structure import (
    PrunableUnits,
    SingularDirections,
    kept_at,
    kept_without,
    price_for_bytes,
    ranks_at,
)


def some_curves(count=6):
    """Matrices whose outputs count very unevenly."""
    generator = torch.Generator().manual_seed(0)
    return {
        f"layers.{index}": curve_of(
            torch.randn(64, 96, generator=generator) * (1 + index),
            torch.full((64,), 10.0 ** (index % 3)),
            torch.rand(96, generator=generator) + 0.1,
        )
        for index in range(count)
    }


RULES = {
    "loss": one_distortion,
    "uniform": equal_bits,
    "pgsvd": equal_error,
    "mgaa": by_importance({f"layers.{index}": float(index) for index in range(6)}),
}


@pytest.mark.parametrize("bits", [2.5, 4.0, 5.5])
def test_every_rule_spends_what_there_is_and_one_level_loses_least(bits):
    curves = some_curves()
    wanted = sum(curve.elements * bits / 8 + curve.overhead_bytes for curve in curves.values())
    losses = {}
    for name, rule in RULES.items():
        levels = search(rule, curves, wanted)
        assert total_bytes(curves, levels) == pytest.approx(wanted, rel=0.002)
        losses[name] = expected_loss(curves, levels)
    assert min(losses, key=losses.__getitem__) == "loss"
    assert losses["loss"] < 0.8 * losses["uniform"]


def test_curves_fall_with_the_level_and_know_their_inverse():
    curve = some_curves(1)["layers.0"]
    assert all(finer >= coarser for finer, coarser in itertools.pairwise(curve.bits))
    for bits in (2.0, 3.7, 5.0):
        level = curve.distortion_with_bits(bits)
        assert 8 * (curve.bytes_at(level) - curve.overhead_bytes) / curve.elements == pytest.approx(
            bits
        )


def test_bytes_that_no_lattice_can_use_go_to_whole_matrices():
    curves = some_curves()
    finest = total_bytes(curves, dict.fromkeys(curves, 2.0**-60))
    assert choose_dense(curves, finest - 1, 2) == frozenset()
    whole = sum(2 * curve.elements for curve in curves.values())
    assert choose_dense(curves, whole + 10_000, 2) == frozenset(curves)
    some = choose_dense(curves, (finest + whole) / 2, 2)
    kept = sum(2 * curves[name].elements for name in some)
    rest = {name: curve for name, curve in curves.items() if name not in some}
    assert kept + total_bytes(rest, dict.fromkeys(rest, 2.0**-60)) <= (finest + whole) / 2
    assert some


def test_a_rank_is_the_one_that_costs_least_of_all():
    losses = tuple(2.0**-index for index in range(32))
    matrix = SingularDirections(losses, 32, 48, 1.5)
    for price in (1e-6, 1e-4, 1e-3, 1e-2):
        costs = {rank: sum(losses[rank:]) + price * 1.5 * rank * 80 for rank in range(1, 33)} | {
            None: price * 1.5 * 32 * 48
        }
        assert matrix.rank_at(price) == min(costs, key=costs.__getitem__)


def test_a_price_makes_the_bytes_fit_and_takes_first_what_counts_least():
    flat, steep = (1000.0,) * 40, tuple(10.0**-index for index in range(40))
    matrices = {
        "flat": SingularDirections(flat, 40, 40, 2.0),
        "steep": SingularDirections(steep, 40, 40, 2.0),
    }
    layers = {"mlp": PrunableUnits(tuple(float(index) for index in range(1, 101)), 30, 2.0)}
    whole = 2 * 2.0 * 1600 + 2.0 * 100 * 30
    price = price_for_bytes([*matrices.values(), *layers.values()], 0.7 * whole)
    ranks, neurons = ranks_at(matrices, price), kept_at(layers, price)
    assert "steep" in ranks
    assert "flat" not in ranks
    left = 2.0 * (1600 + 80 * ranks["steep"] + 30 * neurons["mlp"])
    assert 0.9 * 0.7 * whole <= left <= 0.7 * whole


def test_a_least_share_of_matrices_becomes_pairs_and_loses_as_little_as_it_can():
    matrices = {
        f"{scale:g}": SingularDirections(
            tuple(scale * 0.9**index for index in range(40)), 40, 40, 1.0
        )
        for scale in (1.0, 10.0, 100.0, 1000.0)
    }
    assert ranks_at(matrices, 1e-9) == {}
    assert ranks_at(matrices, 1e-9, min_factorized_share=0.5) == {
        "1": 19,
        "10": 19,
    }  # 20 saves nothing


def test_a_share_of_all_units_goes_from_where_it_costs_least():
    layers = {
        "a": PrunableUnits((5.0, 1.0, 2.0), 10, 0.0),
        "b": PrunableUnits((0.1, 0.2, 0.3), 10, 0.0),
        "c": PrunableUnits((9.0, 8.0, 7.0), 10, 0.0),
    }
    assert kept_without(layers, 0.0) == {"a": 3, "b": 3, "c": 3}
    assert kept_without(layers, 0.34) == {"a": 2, "b": 1, "c": 3}  # b keeps its strongest
    assert sum(kept_without(layers, 0.99).values()) == 3
