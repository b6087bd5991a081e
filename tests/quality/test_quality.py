"""Recipes of the catalog do what they did when their figures were recorded. Run by `make quality`."""

import json

import pytest

from spq_core.recipe.catalog import catalog
from tests.quality.catalog import RECORDED, figures

LARGER = 1.01
FURTHER = 1.15
"""Other processors sum in another order, and a code that falls the other way moves all that come after it."""
NOISE = 0.001
"""Nats per token."""

pytestmark = pytest.mark.quality


@pytest.mark.parametrize("name", sorted(catalog()))
def test_a_recipe_is_as_good_as_when_it_was_recorded(smollm2, tmp_path, name):
    recorded = json.loads(RECORDED.read_text(encoding="utf-8")).get(name)
    if recorded is None:
        pytest.skip(f"no figures of {name} are recorded: python -m tests.quality.catalog {name}")
    found = figures(smollm2, name, tmp_path)
    assert found["bytes"] <= LARGER * recorded["bytes"]
    assert found["kl"] <= FURTHER * recorded["kl"] + NOISE
