import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from spq_core.errors import WeightsMismatchError
from spq_core.models.blocks import load_layer, open_model
from spq_core.models.experts import fused_parts, modules_of_experts, separate_experts
from spq_core.models.fit import check_fit
from spq_core.models.weight_files import weight_files
from tests.model_types.toys import save_toy

KINDS = ("mixtral", "gpt_oss", "aria_text", "deepseek_v3")
"""Stored one by one and joined; fused, transposed, with biases, gate and up interleaved; in groups."""


@pytest.mark.parametrize("model_type", KINDS)
def test_separate_experts_compute_what_fused_ones_do(tmp_path, model_type):
    source = save_toy(model_type, tmp_path / "source")
    fused = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    skeleton, checkpoint = open_model(source)
    assert check_fit(skeleton, checkpoint, "toy") == ()
    layer = load_layer(skeleton, checkpoint, 2)
    ((path, experts),) = modules_of_experts(layer)
    theirs = fused.get_submodule(f"{skeleton.layer_path(2)}.{path}")
    states = torch.randn(40, 96)
    chosen = torch.rand(40, experts.num_experts).topk(2).indices
    weights = torch.rand(40, 2)
    torch.testing.assert_close(
        experts(states, chosen, weights), theirs(states, chosen, weights), rtol=1e-4, atol=1e-6
    )


def test_experts_that_receive_all_tokens_once_for_each_of_them(tmp_path):
    """As Llama 4 has them: weighed before, zeros where an expert is not asked for."""
    source = save_toy("llama4_text", tmp_path / "source")
    fused = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    skeleton, checkpoint = open_model(source)
    layer = load_layer(skeleton, checkpoint, 2)
    ((path, experts),) = modules_of_experts(layer)
    theirs = fused.get_submodule(f"{skeleton.layer_path(2)}.{path}")
    weights = torch.rand(experts.num_experts, 40, 1)
    weights[torch.rand(weights.shape) < 0.7] = 0
    weights[3] = 0  # which no token asks for, and which is not computed
    experts.get_submodule("3.gate_up_proj").weight.data.fill_(float("nan"))
    states = (torch.randn(40, 96) * weights).flatten(0, 1)
    torch.testing.assert_close(experts(states), theirs(states), rtol=1e-4, atol=1e-6)


def test_no_expert_is_computed_that_no_token_chose(tmp_path):
    skeleton, checkpoint = open_model(save_toy("mixtral", tmp_path / "source"))
    layer = load_layer(skeleton, checkpoint, 0)
    ((_, experts),) = modules_of_experts(layer)
    experts.get_submodule("3.gate_up_proj").weight.data.fill_(float("nan"))
    chosen = torch.tensor([[0, 1], [2, 4], [5, 0]])
    assert experts(torch.randn(3, 96), chosen, torch.rand(3, 2)).isfinite().all()
    of_none = torch.full_like(chosen, experts.num_experts)
    assert (experts(torch.randn(3, 96), of_none, torch.rand(3, 2)) == 0).all()


def test_every_part_is_where_transformers_has_it():
    config = AutoConfig.for_model(
        "gpt_oss", num_hidden_layers=1, hidden_size=64, intermediate_size=32, head_dim=16, num_local_experts=4
    )  # fmt: skip
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    theirs = {name for name, _ in model.named_parameters() if ".experts." in name}
    separate_experts(model)
    parts = fused_parts(model)
    assert {fused for fused, _, _ in parts.values()} == theirs
    ours = {name for name, _ in model.named_parameters() if ".experts." in name}
    assert set(parts) == ours


def test_a_missing_expert_is_named(tmp_path):
    from safetensors.torch import load_file, save_file

    source = save_toy("qwen3_moe", tmp_path / "source")
    for file in weight_files(source):
        tensors = load_file(source / file)
        lost = [name for name in tensors if ".layers.1.mlp.experts.2." in name]
        assert len(lost) == 3
        save_file({n: t for n, t in tensors.items() if n not in lost}, source / file)
    skeleton, checkpoint = open_model(source)
    with pytest.raises(WeightsMismatchError, match=r"layers\.1\.mlp\.experts"):
        check_fit(skeleton, checkpoint, "toy")
