"""The order of all directions: sizes, monotone and to the byte."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spq_core.methods.spectra.sizes import Factored, best_first, ranks_within


def matrix(scores, n_out, n_in, adapter_rank=0):
    return Factored(np.asarray(scores, dtype=np.float32), n_out, n_in, adapter_rank)


def total(matrices, ranks):
    return sum(one.parameters(ranks[name]) for name, one in matrices.items())


@st.composite
def some_matrices(draw):
    count = draw(st.integers(1, 4))
    found = {}
    for number in range(count):
        n_out, n_in = draw(st.integers(2, 9)), draw(st.integers(2, 9))
        levels = st.integers(-3, 3)  # few, so that there are ties
        scores = draw(st.lists(levels, min_size=min(n_out, n_in), max_size=min(n_out, n_in)))
        found[f"m{number}"] = matrix(scores, n_out, n_in, draw(st.integers(0, 2)))
    return found


@given(some_matrices(), st.floats(0.0, 1.2))
def test_as_much_stays_as_fits(matrices, share):
    whole = sum(one.whole for one in matrices.values())
    least = sum(one.parameters(1) for one in matrices.values())
    ranks = ranks_within(matrices, share * whole)
    assert total(matrices, ranks) <= max(share * whole, least)
    if share >= 1.0:
        assert ranks == {name: len(one.scores) for name, one in matrices.items()}


@given(some_matrices(), st.floats(0.0, 1.0), st.floats(0.0, 1.0))
def test_a_larger_size_holds_all_of_a_smaller(matrices, one, other):
    whole = sum(matrix.whole for matrix in matrices.values())
    small, large = (
        ranks_within(matrices, share * whole) for share in (min(one, other), max(one, other))
    )
    assert all(small[name] <= large[name] for name in matrices)


@given(some_matrices(), st.floats(0.2, 1.0))
def test_nothing_that_stays_scores_less_than_what_goes(matrices, share):
    whole = sum(one.whole for one in matrices.values())
    ranks = ranks_within(matrices, share * whole)
    ordered = {name: one.scores[best_first(one.scores)] for name, one in matrices.items()}
    kept = [score for name, rank in ranks.items() for score in ordered[name][:rank]]
    gone = [score for name, rank in ranks.items() for score in ordered[name][rank:]]
    assert not kept or not gone or min(kept) >= max(gone)


def test_a_pair_that_is_no_smaller_is_none():
    square = matrix([4, 3, 2, 1], 4, 4)
    assert [square.is_pair(rank) for rank in (1, 2, 3)] == [True, False, False]
    assert matrix([4, 3, 2, 1], 4, 4, adapter_rank=1).is_pair(1) is False


@pytest.mark.parametrize("share", [0.3, 0.55, 0.8])
def test_the_size_is_met_by_less_than_one_direction(share):
    generator = np.random.default_rng(0)
    matrices = {f"m{number}": matrix(generator.normal(size=64), 64, 96) for number in range(20)}
    whole = sum(one.whole for one in matrices.values())
    size = total(matrices, ranks_within(matrices, share * whole))
    assert share * whole - (64 + 96) <= size <= share * whole
