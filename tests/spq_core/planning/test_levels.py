"""The choice of widths, against all choices there are."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spq_core.errors import RecipeError
from spq_core.planning.evolution import Effort, evolve, total_bytes
from spq_core.planning.levels import Options, choose_levels, fit_path

MATRICES = st.lists(
    st.tuples(st.integers(1, 50), st.lists(st.floats(0.0, 1.0), min_size=3, max_size=3)),
    min_size=1,
    max_size=6,
)
BITS = (3, 4, 8)


def database(matrices):
    return {
        f"m{at}": Options(
            BITS,
            tuple(1000.0 * size * bits / 8 for bits in BITS),
            tuple(losses),
            distances=tuple(sorted(losses, reverse=True)),
            length=sum(losses),
        )
        for at, (size, losses) in enumerate(matrices)
    }


def taken(options, widths):
    picks = {name: one.levels.index(widths[name]) for name, one in options.items()}
    return (
        sum(one.bytes[picks[name]] for name, one in options.items()),
        sum(one.losses[picks[name]] for name, one in options.items()),
    )


@given(MATRICES, st.floats(0.0, 1.2))
def test_no_other_choice_loses_less_in_as_many_bytes(matrices, share):
    options = database(matrices)
    least, most = (sum(choose(one.bytes) for one in options.values()) for choose in (min, max))
    wanted = least + share * (most - least)
    size, loss = taken(options, choose_levels(options, wanted, 0.0))
    assert size <= wanted * (1 + 1e-9)
    # Bytes are counted in steps: what would have fitted into all but the rest of a step per matrix is found.
    sure = wanted - len(options) * (wanted - least) / 10_000
    for choice in itertools.product(BITS, repeat=len(options)):
        other_size, other_loss = taken(options, dict(zip(options, choice, strict=True)))
        assert other_size > sure or loss <= other_loss + 1e-9


def test_a_size_below_the_least_is_refused_with_the_least():
    with pytest.raises(RecipeError, match="at least 385"):
        choose_levels(database([(1, [0.1, 0.1, 0.1])]), 374.0, 10.0)


@given(MATRICES, st.floats(0.0, 1.2))
def test_the_path_ends_at_the_first_size_that_fits(matrices, share):
    options = database(matrices)
    least, most = (sum(choose(one.bytes) for one in options.values()) for choose in (min, max))
    wanted = least + share * (most - least) + 1e-6
    widths = fit_path(options, wanted, 0.0)
    size = total_bytes(widths, options)
    assert size <= wanted
    raised = [
        {**widths, name: BITS[BITS.index(bits) + 1]} for name, bits in widths.items() if bits != 8
    ]
    assert not raised or max(total_bytes(one, options) for one in raised) > wanted


def test_the_path_lowers_what_moves_least_in_the_metric():
    options = {
        name: Options((4, 8), (4.0, 8.0), (0.0, 0.0), (distance, 0.0), 100.0)
        for name, distance in {"near": 1.0, "far": 50.0}.items()
    }
    assert fit_path(options, 12.0, 0.0) == {"near": 4, "far": 8}


@given(MATRICES, st.integers(0, 5))
def test_evolution_never_gets_worse_or_larger(matrices, seed):
    options = database(matrices)
    start = choose_levels(options, sum(one.bytes[1] for one in options.values()), 0.0)
    wanted = total_bytes(start, options)

    def fitness(candidates, rows):
        del rows
        return [taken(options, one)[1] for one in candidates]

    found = evolve(start, options, wanted, fitness, Effort(6, offspring=4, seed=seed))
    assert total_bytes(found.levels, options) <= wanted
    assert list(found.divergences) == sorted(found.divergences, reverse=True)
    assert found.divergences[-1] == pytest.approx(fitness([found.levels], 1)[0])


def test_evolution_finds_what_the_expectation_got_wrong():
    """Expected losses say that `b` needs the bits; whole models say that `a` does."""
    options = {
        name: Options((4, 8), (4.0, 8.0), (loss, 0.0))
        for name, loss in {"a": 0.1, "b": 0.9, "c": 0.5, "d": 0.5}.items()
    }
    start = choose_levels(options, 20.0, 0.0)
    assert start == {"a": 4, "b": 8, "c": 4, "d": 4}
    truth = {"a": 5.0, "b": 0.1, "c": 0.2, "d": 0.2}

    def fitness(candidates, rows):
        return [
            rows * 0 + sum(truth[name] for name, bits in one.items() if bits == 4)
            for one in candidates
        ]

    found = evolve(start, options, 20.0, fitness, Effort(30))
    assert found.levels == {"a": 8, "b": 4, "c": 4, "d": 4}
