"""The theoretical rate of real artifacts, against the product that papers give."""

import pytest

from spq_core.compression.compress import SourceModel, compress
from spq_core.data.texts import builtin_text
from spq_core.recipe.document import parse_recipe
from tests.models import save_tiny

CALIBRATION = {"dataset": "builtin", "form": "windows", "samples": 4, "length": 32}
GRID = {"type": "quantize", "method": "gptq", "group_size": 16, "symmetric": False}


def rate(tmp_path, *stages, **more):
    recipe = parse_recipe({"stages": list(stages), "calibration": CALIBRATION, **more})
    source = SourceModel(folder=save_tiny(tmp_path / "source"), name="tiny")
    return compress(source, recipe, tmp_path / "out", text=builtin_text()).theoretical_rate


@pytest.mark.parametrize(
    ("bits", "sparsity", "wanted"),
    [(8, 0.0, 0.5), (4, 0.0, 0.75), (3, 0.0, 0.8125), (4, 0.25, 0.8125), (8, 0.5, 0.75)],
)
def test_bits_and_zeros_come_to_the_product_of_the_paper(tmp_path, bits, sparsity, wanted):
    assert rate(tmp_path, GRID | {"bits": bits, "sparsity": sparsity}) == pytest.approx(wanted)


def test_plain_rounding_halves_and_floats_in_the_source_count_as_sixteen_bits(tmp_path):
    assert rate(tmp_path, {"type": "quantize"}) == pytest.approx(0.5)


def test_what_is_removed_counts_by_its_weights(tmp_path):
    """A third of the neurons of three matrices (96 × 144) beside four of attention."""
    prune = {"type": "prune", "max_ratio": 0.25, "layer_ratios": "uniform", "score": "obs", "update": "least_squares"}  # fmt: skip
    alone = rate(tmp_path, prune)
    both = rate(tmp_path / "both", prune, GRID | {"bits": 4})
    assert 0.1 < alone < 0.25
    assert both == pytest.approx(1 - (1 - alone) * 4 / 16)


def test_pairs_count_as_two_matrices_and_adapters_as_more(tmp_path):
    pairs = rate(tmp_path, {"type": "svd", "variance": 0.9})
    assert 0.0 < pairs < 1.0
    recover = {
        "type": "recover",
        "steps": 2,
        "batch": 1,
        "length": 32,
        "rank": 2,
        "adapters": "kept",
    }
    plain = rate(tmp_path / "plain", GRID | {"bits": 4})
    beside = rate(tmp_path / "beside", GRID | {"bits": 4}, recover)
    assert beside < plain
    thin = rate(tmp_path / "thin", GRID | {"bits": 4, "sparsity": 0.5}, recover)
    assert thin - beside == pytest.approx(0.25 * 0.5), "adapters have no zeros"
