"""A small random model of any supported type, and what stands for an artifact of it in stock transformers."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from spq_core.compression.compress import SourceModel, compress
from spq_core.data.texts import builtin_text
from spq_core.formats.layer import CompressedEmbedding, CompressedLayer
from spq_core.formats.slicing import bias_of, dense_linear, float_linears
from spq_core.models.architectures import TEXT_PARTS, WRAPPER_TYPES
from spq_core.models.auto_class import auto_class, auto_class_of
from spq_core.models.experts import fused_parts
from spq_core.models.skeleton import load_skeleton
from spq_core.recipe.catalog import catalog, resolve
from spq_core.recipe.document import Recipe, parse_recipe
from tests.models import LLAMA_SIZES, SIZES, VOCABULARY, byte_tokenizer, some_ids

HEADS = {"head_dim": 24}
OLD = {"n_embd": 96, "n_layer": 3, "n_head": 4, "n_inner": 160, "n_positions": 256}
LATENT = {
    "q_lora_rank": 32, "kv_lora_rank": 32, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 24,
    "num_key_value_heads": 4, "head_dim": 8,
}  # fmt: skip
MIXTURE = {
    "num_local_experts": 6, "num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "head_dim": 24,
    "shared_expert_intermediate_size": 48, "shared_intermediate_size": 48, "num_experts_per_token": 2, "moe_k": 2,
    "n_routed_experts": 6, "n_shared_experts": 1, "first_k_dense_replace": 1, "n_group": 2, "topk_group": 1,
    "moe_num_experts": 6, "moe_num_shared_experts": 1, "num_shared_experts": 1,
}  # fmt: skip
"""What mixtures call their sizes; each takes those it knows."""
STATE_SPACE = {
    "mamba_n_heads": 8, "mamba_d_head": 24, "mamba_d_state": 16, "mamba_chunk_size": 16, "mamba_expand": 2, "mamba_d_ssm": 192,
}  # fmt: skip
INDEXED = {"index_n_heads": 2, "index_head_dim": 16, "index_topk": 32}
KDA = {
    "linear_head_dim": 24,
    "linear_num_heads": 4,
    "mlp_layer_types": ["dense", "sparse", "sparse"],
}
"""Linear attention with gates for each channel."""
LINEAR = {"layer_types": ["linear_attention", "full_attention", "linear_attention"]}
CHANGED: dict[str, dict[str, Any]] = {
    "helium": HEADS, "ministral": HEADS, "ministral3": HEADS, "hunyuan_v1_dense": HEADS, "glm": HEADS, "glm4": HEADS,
    "gemma": HEADS, "gemma2": HEADS | {"sliding_window": 32}, "gemma3_text": HEADS | {"sliding_window": 32},
    "gpt_neox": {"intermediate_size": 160},
    "mpt": {"n_layers": 3, "d_model": 96, "n_heads": 4, "max_seq_len": 256},
    "bloom": {"n_layer": 3, "n_head": 4}, "falcon": {"num_kv_heads": 2}, "gpt2": OLD, "gpt_bigcode": OLD,
    "gptj": OLD | {"rotary_dim": 8}, "codegen": OLD | {"rotary_dim": 8},
    "gpt_neo": {"num_layers": 3, "num_heads": 4, "attention_types": [[["global", "local", "global"], 1]], "window_size": 32},
    "gemma4": {"vocab_size_per_layer_input": 259, "hidden_size_per_layer_input": 32},
    "gemma4_text": {"vocab_size_per_layer_input": 259, "hidden_size_per_layer_input": 32}, "opt": {"ffn_dim": 160, "word_embed_proj_dim": 96}, "minicpm3": LATENT, "youtu": LATENT,
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "num_experts": 6},
    **dict.fromkeys(("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text", "qwen3_5", "qwen3_5_moe", "minimax"), LINEAR),
    "afmoe": {"num_experts": 4},  # a random router of six sends all tokens to the same two
    "bamba": STATE_SPACE | {"attn_layer_indices": [1]}, "falcon_h1": STATE_SPACE, "granitemoehybrid": STATE_SPACE | LINEAR,
    "mamba2": {"num_heads": 8, "head_dim": 24, "n_groups": 1, "state_size": 16, "chunk_size": 16},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv"], "num_dense_layers": 1},
    "kimi_linear": LATENT | LINEAR | KDA | {"q_lora_rank": None}, "bailing_hybrid": LATENT | LINEAR | KDA | {"num_expert_group": 1},
    "axk2": LATENT, "deepseek_v32": LATENT | INDEXED, "glm_moe_dsa": LATENT | INDEXED, "mistral_large4": LATENT,
    "qwen4_exp_text": LINEAR | {"ngram_vocab_size_base": 100, "linear_key_head_dim": 16, "linear_value_head_dim": 16, "linear_num_key_heads": 2, "linear_num_value_heads": 4, "ple_embed_dim": 32},
    "zaya": {"num_experts_per_tok": 1, "router_hidden_size": 32, "layer_types": ["hybrid"] * 3},
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}, "layer_types": ["full_attention"] * 3},
    "gemma3n_text": {"num_kv_shared_layers": 0, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"], "activation_sparsity_pattern": [0.0] * 3, "vocab_size_per_layer_input": 259, "hidden_size_per_layer_input": 32, "intermediate_size": [160] * 3},
    "zamba2": {"layers_block_type": ["linear_attention", "hybrid", "linear_attention"], "n_mamba_heads": 8, "mamba_headdim": 24, "mamba_d_state": 16, "num_mem_blocks": 1},
    "dots3_note_text": LATENT | INDEXED | {"layer_types": ["indexed_attention", "sliding_attention", "indexed_attention"], "per_layer_config": {}, "mlp_layer_types": ["dense", "sparse", "sparse"]},
    "hunyuan_v1_moe": HEADS, "axk1": LATENT, "kimi_k25": LATENT, "glm4_moe_lite": LATENT,
    "deepseek_v2": LATENT, "deepseek_v3": LATENT,
}  # fmt: skip
"""Sizes whose defaults are those of a large model, or that go by other names."""


def save_toy(model_type: str, folder: Path) -> Path:
    """Three layers of a type, in bfloat16, with norms that differ."""
    if model_type in WRAPPER_TYPES:
        return _save_wrapper(model_type, folder)
    sizes = SIZES if model_type in {"gpt2", "opt", "gpt_neox"} else LLAMA_SIZES
    torch.manual_seed(7)
    known = vars(AutoConfig.for_model(model_type))
    mixture = {name: value for name, value in MIXTURE.items() if name in known}
    mixture = (
        mixture if {"num_experts_per_tok", "num_experts_per_token", "moe_k"} & set(known) else {}
    )
    config = AutoConfig.for_model(model_type, **sizes | mixture | CHANGED.get(model_type, {}))
    return _save(AutoModelForCausalLM.from_config(config, dtype=torch.float32), folder)


TOWER = {
    "num_hidden_layers": 1, "depth": 1, "num_layers": 1, "hidden_size": 96, "embed_dim": 96, "num_attention_heads": 4,
    "num_heads": 4, "intermediate_size": 96, "out_hidden_size": 96, "encoder_ffn_dim": 96, "d_model": 96, "output_dim": 96,
    "downsample_hidden_size": 48, "encoder_layers": 1, "encoder_attention_heads": 4,
}  # fmt: skip
"""Of a tower for images, what it knows of these."""


def _save_wrapper(model_type: str, folder: Path) -> Path:
    """With a small text tower, and small others."""
    torch.manual_seed(7)
    document = AutoConfig.for_model(model_type).to_dict()
    for name, part in document.items():
        if isinstance(part, dict) and name.endswith("_config"):
            text = name in TEXT_PARTS
            known = LLAMA_SIZES | MIXTURE | CHANGED.get(model_type, {}) if text else TOWER
            wanted = {key: size for key, size in known.items() if key in part}
            document[name] = cut_to_layers(part, 3 if text else 1) | wanted
    if "vocab_size" in document:
        document["vocab_size"] = VOCABULARY
    if "hidden_size" in document:
        document["hidden_size"] = LLAMA_SIZES["hidden_size"]
    for name in (
        "pad_token_id",
        "bos_token_id",
        "eos_token_id",
        "image_token_id",
        "video_token_id",
    ):
        if name in document:
            document[name] = 0
    config = AutoConfig.for_model(document.pop("model_type"), **document)
    return _save(auto_class(config).from_config(config, dtype=torch.float32), folder)


def cut_to_layers(part: dict[str, Any], count: int) -> dict[str, Any]:
    """Lists with an entry for each layer become shorter."""
    layers = part.get("num_hidden_layers")
    cut = {
        name: value[:count]
        for name, value in part.items()
        if isinstance(value, list) and len(value) == layers
    }
    rope = part.get("rope_parameters") or {}
    if "mrope_section" in rope or {
        "glm4v_text",
        "glm4v_moe_text",
        "qwen2_vl_text",
        "qwen2_5_vl_text",
        "qwen3_vl_text",
        "qwen3_vl_moe_text",
    } & {part.get("model_type")}:
        share = rope.get("partial_rotary_factor", 1.0)
        each = int(12 * share) // 3
        cut["rope_parameters"] = rope | {"mrope_section": [each, each, int(12 * share) - 2 * each]}
    return {name: value for name, value in (part | cut).items() if name != "per_layer_config"}


ROUTING = ("gate.", "router", "expert_bias")
"""Whose biases, if they were random, would send all tokens of a toy to the same experts."""


def _save(model: PreTrainedModel, folder: Path) -> Path:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 and not any(part in name for part in ROUTING):
                parameter.add_(torch.randn_like(parameter) * 0.05)
    model.to(torch.bfloat16).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def recipe(name: str | dict[str, Any]) -> Recipe:
    """One of the catalog, on little text that every machine has; or a whole document."""
    if isinstance(name, dict):
        return parse_recipe(name)
    calibration = catalog()[name].calibration.model_dump()
    calibration |= {"dataset": builtin_text().name, "samples": 4, "length": 64, "mixed_with": ()}
    return resolve({"extends": name, "calibration": calibration})


def made(source: Path, name: str | dict[str, Any], out: Path) -> Path:
    """An artifact."""
    model = SourceModel(folder=source, name=source.name)
    compress(model, recipe(name), out, text=builtin_text())
    return out


@torch.no_grad()
def source_predictions(folder: Path) -> torch.Tensor:
    """Log-probabilities of the source."""
    return _predictions(auto_class_of(folder).from_pretrained(folder, dtype=torch.float32))


@torch.no_grad()
def twin_predictions(source: Path, artifact: Path) -> torch.Tensor:
    """Those of the source's own class with every weight put in as the artifact's layers say it is."""
    ours, twin = (
        auto_class_of(folder).from_pretrained(folder, dtype=torch.float32)
        for folder in (artifact, source)
    )
    parts = fused_parts(ours)
    pairs = {name: one for name, one in ours.named_modules() if isinstance(one, CompressedLayer)}
    inside = tuple(f"{name}." for name in pairs)
    for name, layer in pairs.items():
        if name.startswith(inside):  # a factor of a pair
            continue
        if isinstance(layer, CompressedEmbedding):
            table = (
                layer(torch.arange(twin.get_submodule(name).num_embeddings)) / layer.output_scale
            )
            twin.get_submodule(name).weight = nn.Parameter(table)
        else:
            _put(twin, name, dense_linear(layer.float_weight(), bias_of(layer)), parts)
    skeleton = load_skeleton(source)
    for name, linear in float_linears(ours):
        if not name.startswith(inside) and name != skeleton.head_path:
            _put(twin, name, dense_linear(linear.weight.data.float(), bias_of(linear)), parts)
    for name, value in ours.named_parameters():
        if value.ndim == 1 and not name.startswith(inside) and name not in parts:
            twin.get_parameter(name).data = value.data.float()
    return _predictions(twin)


def _put(
    twin: nn.Module, name: str, linear: nn.Linear, parts: dict[str, tuple[str, int, bool]]
) -> None:
    """A matrix in its place, which for an expert is a part of a fused tensor."""
    if f"{name}.weight" not in parts:
        there = twin.get_submodule(name)
        is_same = there.weight.shape == linear.weight.shape and not isinstance(there, Conv1D)
        if is_same:  # routers are linear layers with more to them
            there.weight.data, there.bias = linear.weight.data, linear.bias
        else:
            twin.set_submodule(name, linear)
        return
    for tensor, value in linear.named_parameters():
        fused, expert, is_transposed = parts[f"{name}.{tensor}"]
        twin.get_parameter(fused).data[expert] = value.T if is_transposed else value


def write_predictions(artifact: str, file: str) -> None:
    """For a process of its own: what a user of the artifact gets."""
    model = auto_class_of(artifact).from_pretrained(artifact, dtype=torch.float32)
    with torch.no_grad():
        torch.save(_predictions(model), file)


def _predictions(model: PreTrainedModel) -> torch.Tensor:
    return model.eval()(some_ids()).logits.float().log_softmax(-1)


def divergence(wanted: torch.Tensor, found: torch.Tensor) -> float:
    """KL in nats per token."""
    return float((wanted.exp() * (wanted - found)).sum(-1).mean())
