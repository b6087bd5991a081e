import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spq_core.methods.pruning.ratios import layer_ratios

activations = st.lists(st.floats(1e-3, 1e3), min_size=2, max_size=40)


@given(activations, st.floats(0.0, 0.9))
def test_ratios_stay_in_range_and_fall_with_activation(values, max_ratio):
    ratios = layer_ratios(values, max_ratio)
    assert all(-1e-12 <= ratio <= max_ratio + 1e-12 for ratio in ratios)
    order = sorted(range(len(values)), key=lambda i: values[i])
    assert all(ratios[a] >= ratios[b] - 1e-12 for a, b in itertools.pairwise(order))


def test_quietest_layer_loses_the_maximum_and_the_loudest_the_minimum():
    ratios = layer_ratios([0.1, 1.0, 10.0], 0.3, 0.1)
    assert ratios[0] == pytest.approx(0.3, abs=1e-6)
    assert ratios[2] == pytest.approx(0.1, abs=1e-6)
    # Log scale: the geometric mean lies in the middle.
    assert ratios[1] == pytest.approx(0.2, abs=1e-4)
    assert math.isfinite(layer_ratios([1.0, 1.0], 0.3)[0])
