"""The choice of widths, against all choices there are."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spq_core.errors import RecipeError
from spq_core.planning.widths import WidthOptions, choose_widths

MATRICES = st.lists(
    st.tuples(st.integers(1, 50), st.lists(st.floats(0.0, 1.0), min_size=3, max_size=3)),
    min_size=1,
    max_size=6,
)
BITS = (3, 4, 8)


def database(matrices):
    return {
        f"m{at}": WidthOptions(
            BITS, tuple(1000.0 * size * bits / 8 for bits in BITS), tuple(losses)
        )
        for at, (size, losses) in enumerate(matrices)
    }


def taken(options, widths):
    picks = {name: one.bits.index(widths[name]) for name, one in options.items()}
    return (
        sum(one.bytes[picks[name]] for name, one in options.items()),
        sum(one.losses[picks[name]] for name, one in options.items()),
    )


@given(MATRICES, st.floats(0.0, 1.2))
def test_no_other_choice_loses_less_in_as_many_bytes(matrices, share):
    options = database(matrices)
    least, most = (sum(choose(one.bytes) for one in options.values()) for choose in (min, max))
    wanted = least + share * (most - least)
    size, loss = taken(options, choose_widths(options, wanted, 0.0))
    assert size <= wanted * (1 + 1e-9)
    # Bytes are counted in steps: what would have fitted into all but the rest of a step per matrix is found.
    sure = wanted - len(options) * (wanted - least) / 10_000
    for choice in itertools.product(BITS, repeat=len(options)):
        other_size, other_loss = taken(options, dict(zip(options, choice, strict=True)))
        assert other_size > sure or loss <= other_loss + 1e-9


def test_a_size_below_the_least_is_refused_with_the_least():
    with pytest.raises(RecipeError, match="at least 385"):
        choose_widths(database([(1, [0.1, 0.1, 0.1])]), 374.0, 10.0)
