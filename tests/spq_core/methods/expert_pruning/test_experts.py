import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from spq_core.compression.compress import compress
from spq_core.data.texts import builtin_text
from spq_core.errors import DatasetError, RecipeError, UnsupportedModelError
from spq_core.methods.expert_pruning.scores import RunningScores, strongest
from spq_core.models.clean_copy import SourceModel
from spq_core.models.weight_files import weight_files
from spq_core.recipe.document import parse_recipe
from tests import forked
from tests.marks import every
from tests.model_types.toys import (
    divergence,
    made,
    save_toy,
    source_predictions,
    write_predictions,
)
from tests.model_types.toys import (
    recipe as of_catalog,
)
from tests.models import save_tiny

CALIBRATION = {"dataset": "builtin", "form": "windows", "samples": 8, "length": 128}


def recipe(*behind, **settings):
    stages = [{"type": "prune-experts", "ratio": 0.34} | settings, *behind]
    return {"stages": stages, "calibration": CALIBRATION}


def test_a_score_is_the_mean_of_weighted_norms():
    found = RunningScores(3)
    found.add(0, torch.tensor([0.5, 1.0]), torch.tensor([[3.0, 4.0], [0.0, 2.0]]))
    found.add(0, torch.tensor([0.25]), torch.tensor([[0.0, 4.0]]))
    found.add(2, torch.tensor([1.0]), torch.tensor([[0.0, 1.0]]))
    torch.testing.assert_close(
        found.reap(), torch.tensor([(2.5 + 2 + 1) / 3, 0, 1], dtype=torch.float64)
    )
    assert found.tokens.tolist() == [3, 0, 1]


def test_the_strongest_stay_in_their_order_and_in_every_group():
    scores = torch.tensor([5.0, 1, 4, 9, 8, 7])
    assert strongest(scores, 4).tolist() == [0, 3, 4, 5]
    assert strongest(scores, 4, groups=2).tolist() == [0, 2, 3, 4]
    assert strongest(torch.ones(6), 2).tolist() == [0, 1]


def silenced(source, numbers):
    """The same model in which some experts of every layer make nothing of anything."""
    for file in weight_files(source):
        tensors = load_file(source / file)
        for name, tensor in tensors.items():
            if any(f".experts.{n}." in name for n in numbers) and name.endswith(
                ("down_proj.weight", "w2.weight")
            ):
                tensor.zero_()
        save_file(tensors, source / file, metadata={"format": "pt"})
    return source


@pytest.mark.parametrize("model_type", every(2, ["mixtral", "qwen3_moe"]))
@pytest.mark.parametrize(
    "behind",
    [
        [],
        [{"type": "quantize", "mode": "mix_percentile"}],  # looks at all blocks first
        [{"type": "quantize", "method": "gptq", "bits": 8}],
    ],
    ids=["alone", "int8", "gptq"],
)
def test_experts_that_make_nothing_go_and_are_not_missed(tmp_path, model_type, behind):
    """Their tokens lose nothing but share of the router's weight, which the toy does not renormalise."""
    source = silenced(save_toy(model_type, tmp_path / "source"), (1, 4))
    out, file = made(source, recipe(*behind), tmp_path / "out"), tmp_path / "found.pt"
    config = json.loads((out / "config.json").read_text())
    assert {config.get("num_local_experts"), config.get("num_experts")} >= {4}
    assert forked.call(write_predictions, str(out), str(file)) == 0
    found = torch.load(file, weights_only=True)
    by_reap = divergence(source_predictions(source), found)
    others = made(source, recipe(*behind, score="random"), tmp_path / "random")
    assert forked.call(write_predictions, str(others), str(file)) == 0
    by_chance = divergence(source_predictions(source), torch.load(file, weights_only=True))
    assert by_reap < by_chance + 1e-5  # what rounding to 8 bits adds differs by as much


def test_groups_of_a_router_keep_equal_sizes(tmp_path):
    out = made(save_toy("deepseek_v3", tmp_path / "source"), recipe(), tmp_path / "out")
    assert json.loads((out / "config.json").read_text())["n_routed_experts"] == 4
    assert forked.call(write_predictions, str(out), str(tmp_path / "p.pt")) == 0


def test_what_cannot_be_is_said(tmp_path):
    mixture = save_toy("mixtral", tmp_path / "mixtral")
    with pytest.raises(RecipeError, match="leaves 1 of 6 experts, and each token is routed to 2"):
        made(mixture, recipe(ratio=0.9), tmp_path / "out")
    with pytest.raises(UnsupportedModelError, match="have no experts"):
        made(save_tiny(tmp_path / "dense"), recipe(), tmp_path / "out")
    entropy = {"type": "quantize", "method": "entropy"}
    with pytest.raises(RecipeError, match="a target has counted on"):
        parse_recipe(recipe(entropy) | {"target": {"bytes_ratio": 0.4}})
    with pytest.raises(RecipeError, match="put it before quantize"):
        first = [{"type": "quantize"}, {"type": "prune-experts"}]
        parse_recipe({"stages": first, "calibration": CALIBRATION})


@pytest.mark.parametrize("by", ["prune", *every(2, ["gptq-4", "balanced"])])
def test_a_calibration_that_says_nothing_of_most_experts_is_refused(tmp_path, by):
    source = save_toy("mixtral", tmp_path / "source")
    for file in weight_files(source):  # a router that knows two experts only
        tensors = load_file(source / file)
        for name, tensor in tensors.items():
            if name.endswith("gate.weight"):
                tensor.zero_()  # of equals, the first are taken
        save_file(tensors, source / file, metadata={"format": "pt"})
    with pytest.raises(DatasetError, match="no calibration token is routed to 4 of 6 experts"):
        made(source, recipe() if by == "prune" else by, tmp_path / "out")


def test_the_report_says_how_tokens_were_shared_out(tmp_path):
    source = save_toy("mixtral", tmp_path / "source")
    report = compress(
        SourceModel(folder=source, name="m"),
        of_catalog("gptq-4"),
        tmp_path / "out",
        text=builtin_text(),
    )
    routing = [one for one in report.modules if one.stage == "calibration"]
    assert [one.layer for one in routing] == [f"model.layers.{i}.mlp.experts" for i in range(3)]
    for one in routing:
        assert one.figures["experts"] == 6
        assert one.figures["tokens"] == 2 * 4 * 64  # two experts for each token of the samples
        assert 0 <= one.figures["fewest_tokens"] <= 4 * 64 / 3
