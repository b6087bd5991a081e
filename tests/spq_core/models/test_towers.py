import json
import re

import pytest
from safetensors.torch import load_file, save_file

from spq_core.errors import UnsafeModelError, WeightsMismatchError
from spq_core.models.architectures import check_config
from spq_core.models.blocks import open_model
from spq_core.models.fit import check_fit
from spq_core.models.shapes import read_shapes
from spq_core.models.skeleton import load_skeleton
from spq_core.models.unsafe_keys import refuse_unsafe_keys
from spq_core.models.weight_files import read_header, stored_bytes, weight_files
from tests.marks import every
from tests.model_types.toys import save_toy

TOWERS = {
    "text_config": {"model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"]},
    "vision_config": {"model_type": "siglip_vision_model"},
}


def test_a_tower_may_have_a_type_and_nothing_else():
    refuse_unsafe_keys(TOWERS, "config.json", towers=True)
    for document in (
        {"text_config": {"model_type": "somebody/weights"}},
        {"text_config": {"model_type": "../elsewhere"}},
        {"text_config": {"_name_or_path": "somebody/weights"}},
        {"text_config": {"inner_config": {"model_type": "llama"}}},
        {"text_config": {"architectures": [{"repo": "x"}]}},
        {"anything": {"model_type": "llama"}},
    ):
        with pytest.raises(UnsafeModelError, match="a model within the model"):
            refuse_unsafe_keys(document, "config.json", towers=True)


def test_only_models_of_towers_have_them():
    with pytest.raises(UnsafeModelError, match="a model within the model"):
        check_config({"model_type": "llama"} | TOWERS)
    check_config(
        {"model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"]} | TOWERS
    )


def test_sizes_of_towers_are_looked_at_too():
    huge = {
        "model_type": "gemma3",
        "text_config": {"model_type": "gemma3_text", "hidden_size": 1 << 40},
    }
    with pytest.raises(UnsafeModelError, match="hidden_size"):
        check_config(huge)


@pytest.mark.parametrize(
    "model_type", every(3, ["gemma3", "mixtral", "llava", "qwen3_vl_moe", "qwen3_5", "gpt_oss"])
)
def test_headers_tell_the_matrices_that_are_compressed(tmp_path, model_type):
    source = save_toy(model_type, tmp_path / "source")
    tensors = {}
    for file in weight_files(source):
        tensors |= read_header(source / file)
    config = json.loads((source / "config.json").read_text())
    shapes = read_shapes(config, tensors, stored_bytes(source))
    skeleton = load_skeleton(source)
    assert shapes.layer_elements == sum(skeleton.matrix_sizes().values())
    assert len(shapes.layers) == skeleton.n_layers
    assert (shapes.head is None) == skeleton.tied
    carried = [
        part.numel()
        for name, part in skeleton.model.state_dict().items()
        if skeleton.is_foreign(name)
    ]
    assert shapes.carried_bytes == 2 * sum(carried)


def test_a_tensor_under_two_names_is_refused(tmp_path):
    """Files of before and after a renaming: which of both is meant, nobody can know."""
    source = save_toy("qwen2_vl", tmp_path / "source")
    (file,) = weight_files(source)
    tensors = load_file(source / file)
    old = "model.layers.0.mlp.up_proj.weight"
    tensors["model.language_model.layers.0.mlp.up_proj.weight"] = tensors[old] * 2
    save_file(tensors, source / file, metadata={"format": "pt"})
    with pytest.raises(WeightsMismatchError, match=re.escape(old)):
        check_fit(*open_model(source), "toy")
