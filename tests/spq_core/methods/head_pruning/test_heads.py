"""Heads go in groups, and the output projection makes up for what it can."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from spq_core.artifact.read import load_artifact
from spq_core.compression.compress import SourceModel, compress
from spq_core.data.texts import builtin_text
from spq_core.errors import RecipeError, UnsupportedModelError
from spq_core.methods.head_pruning.heads import columns_of, score_groups
from spq_core.methods.pruning.compensation import compensate
from spq_core.recipe.document import parse_recipe
from tests.models import FAMILIES, save_tiny, some_ids
from tests.spq_core.compression.test_compress import dense_twin, relative_difference
from tests.spq_core.methods.pruning.test_compensation import inputs, moments, output_loss

WINDOWS = {"dataset": "builtin", "form": "windows", "samples": 6, "length": 48}
HEADS = {"type": "prune-heads", "ratio": 0.35}
RATE = {"type": "quantize", "method": "rate"}
GROUPED = [name for name in FAMILIES if name not in {"phi3", "gpt-neox", "gpt2", "opt"}]


def run(folder, out, *stages, **rest):
    what = parse_recipe(
        {"stages": list(stages), "calibration": WINDOWS, "floats": "source", **rest}
    )
    source = SourceModel(folder=folder, name="tiny")
    return compress(source, what, out, text=builtin_text())


def test_a_group_scores_what_its_removal_costs_after_the_best_update():
    rows = 0.2 * inputs() + torch.randn(3000, 12, generator=torch.Generator().manual_seed(5))
    weight = torch.randn(5, 12, generator=torch.Generator().manual_seed(1))
    weights = torch.tensor([4.0, 1.0, 1.0, 1.0, 0.0])
    scores = score_groups(weight, moments(rows).second_moment, 4)
    weighted = score_groups(weight, moments(rows).second_moment, 4, weights)
    for group in range(4):
        kept = columns_of(torch.tensor([one for one in range(4) if one != group]), 4, 12)
        updated = compensate("least_squares", weight, None, kept, moments(rows))
        lost = 5 * output_loss(rows, weight, None, kept, updated)
        assert float(scores[group]) == pytest.approx(lost, rel=0.1)
        errors = (rows[:, kept] @ updated.weight.T - rows @ weight.T).square().mean(dim=0)
        assert float(weighted[group]) == pytest.approx(float(errors @ weights), rel=0.1)


@pytest.mark.parametrize("family", GROUPED)
def test_a_model_with_fewer_heads_loads_generates_and_keeps_its_ratio(tmp_path, family):
    folder = save_tiny(tmp_path / "source", family)
    report = run(folder, tmp_path / "out", HEADS, RATE, target={"bytes_ratio": 0.2})
    cut = [row for row in report.modules if row.stage == "prune-heads" and row.applied]
    assert len(cut) == 2 * 4  # 2 of 6 groups, in layers of 2
    model, twin = dense_twin(tmp_path / "out", folder)
    config = model.config
    for row in cut:
        if row.layer.endswith("k_proj"):
            attention = model.get_submodule(row.layer.rpartition(".")[0])
            queries, keys = attention.q_proj.out_features, attention.k_proj.out_features
            assert keys == attention.head_dim
            assert queries // keys == config.num_attention_heads // config.num_key_value_heads
    with torch.no_grad():
        ours = model(some_ids()).logits
        assert relative_difference(ours, twin(some_ids()).logits) < 1e-3
        assert model.generate(some_ids(), max_new_tokens=4, do_sample=False).shape[1] == 44


def test_an_update_loses_less_than_none(tmp_path):
    folder = save_tiny(tmp_path / "source")
    ids = torch.tensor([[3 + (b - 33) % 256 for b in builtin_text().evaluation[:200].encode()]])
    source = AutoModelForCausalLM.from_pretrained(folder)
    found = {}
    for update in ("none", "least_squares"):
        run(folder, tmp_path / update, HEADS | {"update": update})
        with torch.no_grad():
            logits = load_artifact(tmp_path / update)(ids).logits
            found[update] = relative_difference(logits, source(ids).logits)
    assert found["least_squares"] < 0.9 * found["none"]


def test_a_target_decides_how_many_heads_are_worth_their_bytes(tmp_path):
    folder = save_tiny(tmp_path / "source", "llama", torch.bfloat16, hidden=192, vocabulary=4096)
    auto = HEADS | {"ratio": "auto"}
    report = run(folder, tmp_path / "out", auto, RATE, target={"bytes_ratio": 0.24})
    assert report.ratio_to_source == pytest.approx(0.24, rel=0.02)


@pytest.mark.parametrize("family", ["phi3", "opt", "gpt2", "gpt-neox"])
def test_models_that_fix_their_heads_are_refused_before_anything_is_read(tmp_path, family):
    source = SourceModel(folder=save_tiny(tmp_path / "source", family), name="tiny")
    recipe = parse_recipe({"stages": [HEADS], "calibration": WINDOWS})
    with pytest.raises(UnsupportedModelError, match="prune-heads does not support"):
        compress(source, recipe, tmp_path / "out")  # without the text it would calibrate on
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_heads_go_before_ranks():
    svd = {"type": "svd"}
    with pytest.raises(RecipeError, match="must come before svd"):
        parse_recipe({"stages": [svd, HEADS]})
    with pytest.raises(RecipeError, match="cannot share a matrix"):
        parse_recipe(
            {
                "stages": [HEADS | {"ratio": "auto"}, svd | {"variance": "auto"}],
                "target": {"bytes_ratio": 0.5},
            }
        )
