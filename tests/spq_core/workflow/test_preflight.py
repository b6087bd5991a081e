import json

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from spq_core.compression.compress import SourceModel
from spq_core.data.texts import builtin_text
from spq_core.errors import RecipeError
from spq_core.formats.lattice.layers import CodedLinear
from spq_core.models.architectures import SUPPORTED_MODEL_TYPES
from spq_core.models.skeleton import load_skeleton
from spq_core.progress import Silent
from spq_core.recipe.catalog import catalog, resolve
from spq_core.recipe.document import parse_recipe
from spq_core.workflow.load_gate import LoadGateError
from spq_core.workflow.preflight import PreflightError, preflight
from spq_core.workflow.toy import toy_config
from tests.models import save_tiny


class Notes(Silent):
    def __init__(self):
        self.found = []

    def advance(self, message):
        self.found.append(message)


def fly(folder, recipe, tmp_path):
    notes = Notes()
    preflight(SourceModel(folder=folder, name="m"), recipe, builtin_text(), tmp_path, notes)
    return notes.found


def without_weights(tmp_path, family):
    folder = save_tiny(tmp_path / "source", family)
    (folder / "model.safetensors").unlink()
    return folder


@pytest.mark.parametrize("family", ["llama-untied", "gemma3", "phi3", "opt", "gpt2"])
def test_no_weight_is_read_and_nothing_is_left(tmp_path, family):
    folder = without_weights(tmp_path, family)
    found = fly(
        folder, resolve({"extends": "spq", "calibration": {"dataset": "builtin"}}), tmp_path
    )
    assert found == ["a two-layer toy was compressed, loaded, compared, and generated"]
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize("name", sorted(set(catalog()) - {"spq"}))
def test_every_recipe_of_the_catalog_flies(tmp_path, name):
    recipe = resolve({"extends": name, "calibration": {"dataset": "builtin"}})
    assert "loaded" in fly(without_weights(tmp_path, "llama"), recipe, tmp_path)[-1]


RELEASED = {
    "hunyuan_v1_dense": {"head_dim": 128}, "ministral": {"head_dim": 128}, "nemotron": {"num_key_value_heads": 8},
    "hunyuan_v1_moe": {"head_dim": 128}, "lfm2_moe": {"layer_types": ["conv", "conv", "full_attention", "conv"] * 8},
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}},
    "bamba": {"attn_layer_indices": [9, 18, 27]},
    "granitemoehybrid": {"layer_types": ["linear_attention"] * 5 + ["full_attention"] + ["linear_attention"] * 26},
}  # fmt: skip
"""What a configuration must say that its class has no default for."""


@pytest.mark.parametrize("model_type", sorted(SUPPORTED_MODEL_TYPES))
def test_configurations_as_they_are_released_have_a_toy(tmp_path, model_type):
    sizes = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0} | RELEASED.get(model_type, {})
    toy = toy_config(CONFIG_MAPPING[model_type](**sizes))
    toy.vocab_size = 300
    model = AutoModelForCausalLM.from_config(toy, dtype=torch.float32)
    assert model(torch.arange(8)[None]).logits.isfinite().all()
    assert model.num_parameters() < 10_000_000
    toy.save_pretrained(tmp_path)
    assert 2 <= load_skeleton(tmp_path).n_layers <= 4


def test_heads_left_to_a_target_fly_too(tmp_path):
    heads = {"type": "prune-heads", "ratio": "auto"}
    recipe = parse_recipe(
        {
            "stages": [heads],
            "target": {"bytes_ratio": 0.95},
            "calibration": {"dataset": "builtin", "form": "windows"},
        }
    )
    assert "loaded" in fly(without_weights(tmp_path, "llama"), recipe, tmp_path)[-1]


def test_what_would_break_at_the_end_breaks_at_once(tmp_path, monkeypatch):
    def broken(_self):
        raise KeyError("no such kernel")

    monkeypatch.setattr(CodedLinear, "to_runtime", broken)
    recipe = resolve({"extends": "small", "calibration": {"dataset": "builtin"}})
    with pytest.raises(PreflightError, match="two-layer toy.*no such kernel"):
        fly(without_weights(tmp_path, "llama"), recipe, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_loaded_toy_that_computes_something_else_is_noticed(tmp_path, monkeypatch):
    whole = CodedLinear.to_runtime

    def wrong(self):
        layer = whole(self)
        layer.scale.data *= 2
        return layer

    monkeypatch.setattr(CodedLinear, "to_runtime", wrong)
    recipe = resolve({"extends": "small", "calibration": {"dataset": "builtin"}})
    with pytest.raises(LoadGateError, match="logits differ"):
        fly(without_weights(tmp_path, "llama"), recipe, tmp_path)


def test_what_the_recipe_asks_in_vain_keeps_its_own_error(tmp_path):
    recipe = parse_recipe({"stages": [{"type": "recover"}], "calibration": {"dataset": "builtin"}})
    with pytest.raises(RecipeError, match="text"):
        preflight(
            SourceModel(folder=without_weights(tmp_path, "llama"), name="m"), recipe, None,
            tmp_path, Silent(),
        )  # fmt: skip


def test_a_configuration_without_a_toy_does_not_stop_the_run(tmp_path):
    folder = without_weights(tmp_path, "llama")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_act": "unheard-of"}))
    assert "skipped" in fly(folder, resolve("int8"), tmp_path)[-1]
