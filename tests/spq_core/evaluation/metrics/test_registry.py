"""What holds of every registered metric; a new one is tried here without being named."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from spq_core.evaluation.metrics.registry import METRICS, figure_names
from spq_core.evaluation.quality import score_windows
from spq_core.evaluation.summary import Row
from spq_core.workflow.card import figures_table
from tests.models import save_tiny, some_ids

EXTENDING = (Path(__file__).parents[4] / "docs" / "extending.md").read_text(encoding="utf-8")
NAMES = [metric.name for metric in METRICS]


@pytest.fixture(scope="module")
def scores(tmp_path_factory):
    folder = save_tiny(tmp_path_factory.mktemp("metrics") / "model")
    models = {
        name: AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        for name in ("source", "same", "other")
    }
    generator = torch.Generator().manual_seed(0)
    for parameter in models["other"].parameters():
        parameter.data.normal_(generator=generator)
    windows = torch.cat([some_ids(60), some_ids(60).flip(1)])
    return score_windows(
        models, windows, reference="source", decode=lambda tokens: "ab" * len(tokens)
    )


def test_names_and_titles_are_their_own():
    assert len(set(NAMES)) == len({metric.title for metric in METRICS}) == len(METRICS)


@pytest.mark.parametrize("name", NAMES)
def test_a_model_is_as_good_as_itself_and_another_is_told_apart(scores, name):
    assert scores["same"][name] is not None
    assert scores["other"][name] is not None
    assert scores["same"][name] != pytest.approx(scores["other"][name], rel=1e-3)
    if scores["source"][name] is not None:  # it needs no reference
        assert scores["same"][name] == pytest.approx(scores["source"][name])


@pytest.mark.parametrize("metric", METRICS)
def test_a_metric_is_shown_in_tables_and_documented(scores, metric):
    row = Row(
        name="other", bytes_on_disk=1, resident_bytes=1, dataset="builtin", quality=scores["other"],
        ppl_paper=None, prefill_tokens_per_second=None, decode_tokens_per_second=None,
    ).document()  # fmt: skip
    table = figures_table([row])
    assert f"| {metric.title} |" in table
    value, error = scores["other"][metric.name], scores["other"][f"{metric.name}_se"]
    assert f"| {value:{metric.form}} ± {error:{metric.form}} |" in table
    assert f"| `{metric.name}` |" in EXTENDING


def test_what_is_reported_is_what_the_registry_says(scores):
    for figures in scores.values():
        assert set(figures) == figure_names() | {"tokens", "windows"}
    assert all(value is not None for value in scores["other"].values())
