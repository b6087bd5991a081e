import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spq_core.methods.quantization.granularity import per_channel_names, row_cutoff
from spq_core.methods.quantization.settings import ScaleMode

SHAPES = {
    "layers.0.self_attn.q_proj.down": (20, 64),
    "layers.0.self_attn.q_proj.up": (64, 20),
    "layers.0.self_attn.o_proj": (2048, 64),
    "layers.0.mlp.up_proj": (100, 64),
    "other": (2000, 10),
    "tiny_other": (10, 10),
    "lm_head": (5000, 64),
}


def chosen(mode):
    return per_channel_names(
        mode,
        SHAPES,
        mlp=("mlp.up_proj",),
        single_scale=("self_attn.q_proj", "self_attn.o_proj", "lm_head"),
    )


def test_uniform_modes():
    assert chosen(ScaleMode.TENSOR) == frozenset()
    assert chosen(ScaleMode.CHANNEL) == frozenset(SHAPES)


def test_by_name_scales_mlp_rows_and_large_unknown_matrices():
    assert chosen(ScaleMode.MIX_NAME) == {"layers.0.mlp.up_proj", "other"}


def test_by_percentile_and_by_mean():
    # Rows 10, 20, 64, 100, 2000, 2048, 5000: median 100.
    assert chosen(ScaleMode.MIX_PERCENTILE) == {
        "layers.0.mlp.up_proj", "other", "layers.0.self_attn.o_proj", "lm_head",
    }  # fmt: skip
    assert chosen(ScaleMode.MIX_MEANSTD) == {"lm_head"}


@given(st.lists(st.integers(1, 10_000), min_size=1, max_size=30))
def test_cutoffs_match_the_standard_library(rows):
    assert row_cutoff(ScaleMode.MIX_PERCENTILE, rows) == pytest.approx(statistics.median(rows))
    expected = statistics.fmean(rows) + 0.5 * statistics.pstdev(rows)
    assert row_cutoff(ScaleMode.MIX_MEANSTD, rows) == pytest.approx(expected)
