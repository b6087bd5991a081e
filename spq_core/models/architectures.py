"""Which architectures are accepted before any weight is read.

The structure of a loaded model decides what the stages touch (`spq_core.models.structure`); this
table only says which model types a repository may ask transformers to build, so that an unknown
one is refused from its config.json alone. It is free of torch.
"""

from collections.abc import Mapping
from typing import Any

from spq_core.errors import UnsafeModelError, UnsupportedModelError
from spq_core.models.quantized.forms import form_of, is_quantized
from spq_core.models.refused_types import why_refused
from spq_core.models.unsafe_keys import refuse_unsafe_keys

SUPPORTED_MODEL_TYPES = (
    "llama", "mistral", "qwen2", "qwen3", "smollm3", "gemma2", "gemma3_text", "phi3", "opt",
    "gpt_neox", "gpt2", "cohere", "cohere2", "cwm", "ernie4_5", "exaone4", "gemma", "granite", "granite_swa", "helium",
    "hyperclovax", "internlm3", "iquestcoder", "ministral", "ministral3", "olmo", "olmo2", "olmo3", "seed_oss", "stablelm", "vaultgemma", "xglm", "biogpt", "gpt_bigcode", "diffllama", "arcee", "apertus", "jais2", "nemotron", "glm", "glm4", "starcoder2", "phi", "bloom", "falcon", "gptj", "gpt_neo", "codegen", "mpt", "persimmon", "nanochat", "hunyuan_v1_dense", "gpt_neox_japanese", "minicpm3", "youtu",
    "mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "gpt_oss", "deepseek_v2", "deepseek_v3", "phimoe", "granitemoe",
    "granitemoeshared", "granitemoe_swa", "afmoe", "aria_text", "cohere2_moe", "dots1", "ernie4_5_moe", "exaone_moe", "flex_olmo",
    "flint", "glm4_moe", "hy_v3", "kolibri1", "laguna", "mellum", "mimo_v2_flash", "minimax", "minimax_m2", "minimax_m3_vl_text",
    "nemotron_h", "qwen3_5_moe_text", "qwen3_next", "solar_open", "jamba",
    "axk1", "axk2", "bailing_hybrid", "bamba", "cohere_compass_text", "deepseek_v32", "falcon_h1", "falcon_mamba", "glm4_moe_lite",
    "granitemoehybrid", "hunyuan_v1_moe", "kimi_linear", "lfm2_moe", "llama4_text", "mamba", "mamba2", "zamba2",
    "qwen3_5_text", "olmo_hybrid", "lfm2", "lfm3", "gemma4_text", "gemma4_unified_text", "beam", "doge", "modernbert-decoder",
)  # fmt: skip
WRAPPER_TYPES = (
    "gemma3", "mistral3", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe", "llava", "llava_next",
    "llava_onevision", "internvl", "paligemma", "smolvlm", "idefics3", "aya_vision", "cohere2_vision", "glm4v", "glm4v_moe",
    "got_ocr2", "lfm2_vl", "ovis2", "video_llava", "vipllava", "exaone4_5", "lighton_ocr", "aria", "janus", "deepseek_vl",
    "cosmos3_edge", "cosmos3_omni", "deepseek_vl_hybrid", "fuyu", "gemma4", "gemma4_unified", "glm46v", "glmga", "granite_docling",
    "hyperclovax_vision_v2", "idefics2", "kimi_k25", "lfm3_vl", "llama4", "llava_next_video", "minimax_m3_vl", "pp_chart2table", "qianfan_ocr",
    "qwen3_omni_moe_thinker", "video_llama_3",
)  # fmt: skip
"""Models of several towers, of which the one that writes text is compressed and the others are carried along."""
ALL_MODEL_TYPES = (*SUPPORTED_MODEL_TYPES, *WRAPPER_TYPES)
DTYPES = (None, "float32", "float16", "bfloat16")
ARTIFACT_PREFIX = "spq_"
EXPERT_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
CAUSAL_SUFFIXES = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")


TEXT_PARTS = ("text_config", "llm_config", "language_config", "thinker_config")
LARGEST = {
    "num_hidden_layers": 512,
    "hidden_size": 1 << 16,
    "intermediate_size": 1 << 20,
    "ffn_dim": 1 << 20,
    "vocab_size": 1 << 21,
    "head_dim": 1 << 12,
    "num_attention_heads": 1 << 12,
    "num_key_value_heads": 1 << 12,
    "max_position_embeddings": 1 << 24,
    "word_embed_proj_dim": 1 << 16,
    "n_layer": 512,
    "n_embd": 1 << 16,
    "n_inner": 1 << 20,
    "n_head": 1 << 12,
    "n_positions": 1 << 24,
    "n_layers": 512,
    "num_layers": 512,
    "d_model": 1 << 16,
    "n_heads": 1 << 12,
}
"""Larger numbers in a config.json are a mistake or a trap: building the model would take all memory."""


def text_part(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a config.json says about the part that writes text; all of it where there are no others."""
    for name in TEXT_PARTS:
        part = config.get(name)
        if isinstance(part, dict):
            return part
    return config


def _check_sizes(config: Mapping[str, Any]) -> None:
    for part in config.values():
        if isinstance(part, dict):
            _check_sizes(part)
    for name, largest in LARGEST.items():
        value = config.get(name)
        if value is not None and (type(value) is not int or not 0 < value <= largest):
            raise UnsafeModelError(
                "unsafe_config",
                f"config.json: {name} is {str(value)[:40]}, expected 1 to {largest}",
            )


def check_stored_sizes(config: Mapping[str, Any], stored: int) -> None:
    """Compare what a config.json asks to be built with the number of stored parameters.

    Raises:
        UnsafeModelError: the model would be larger than its weights, by embedding, MLPs and attention alone.
    """
    config = text_part(config)
    hidden = _size(config, "hidden_size", "n_embd")
    layers = _size(config, "num_hidden_layers", "n_layer")
    mlp = _size(config, "intermediate_size", "ffn_dim", "n_inner")
    attention = _size(config, "num_attention_heads", "n_head") * _size(config, "head_dim")
    embedding = _size(config, "vocab_size") * (_size(config, "word_embed_proj_dim") or hidden)
    others = config.get("layer_types") or ()
    if any(config.get(name) for name in EXPERT_COUNTS) or any(
        "attention" not in str(kind) or "linear" in str(kind) for kind in others
    ):
        mlp = attention = 0  # sizes of some layers only
    least = embedding + layers * hidden * (2 * mlp + 2 * attention)
    if least > stored:
        raise UnsafeModelError(
            "unsafe_config",
            f"config.json describes at least {least:,} parameters (num_hidden_layers {layers}, hidden_size "
            f"{hidden}), the weights have {stored:,}; they belong to different models, or files are missing",
        )


def _size(config: Mapping[str, Any], *names: str) -> int:
    """The first of these that a config has; 0 if it has none."""
    return next((int(config[name]) for name in names if config.get(name) is not None), 0)


def check_architectures(config: Mapping[str, Any]) -> None:
    """Refuse a config.json that names a model of another kind than a causal language model.

    Raises:
        UnsupportedModelError: classifiers, encoders without a head, reward models.
    """
    named = config.get("architectures")
    names = [str(name) for name in named] if isinstance(named, list) else []
    if names and not any(name.endswith(CAUSAL_SUFFIXES) for name in names):
        raise UnsupportedModelError(
            f"config.json: architectures names {names[0][:80]!r}, which is not a causal language model "
            "(…ForCausalLM): its own head would be lost. Name the language model it was made from"
        )


def check_config(config: Mapping[str, Any]) -> str:
    """Return the model type of a config.json that we are willing to build.

    Raises:
        UnsafeModelError: it is quantized already, is one of our artifacts, asks for remote code,
            or has sizes no model has.
        UnsupportedModelError: its model type is not in the table.
    """
    model_type = config.get("model_type")
    if isinstance(model_type, str) and model_type.startswith(ARTIFACT_PREFIX):
        raise UnsafeModelError(
            "already_quantized",
            f"model_type {model_type!r} is a compressed artifact already; name its base model",
        )
    if is_quantized(config):
        raise UnsafeModelError(
            "already_quantized",
            f"config.json: weights are quantized already ({form_of(config).name}), and compressing them again hurts: name "
            "the model they were made from, or set allow_requantize (--allow-requantize) to have them widened and compressed all the same",
        )
    refuse_unsafe_keys(config, "config.json", towers=model_type in WRAPPER_TYPES)
    if model_type not in ALL_MODEL_TYPES:
        reason = why_refused(model_type) or f"supported are {', '.join(ALL_MODEL_TYPES)}"
        raise UnsupportedModelError(f"model type {model_type!r} is not supported: {reason}")
    check_architectures(config)
    _check_sizes(config)
    text = text_part(config)
    padding, rows = text.get("pad_token_id"), text.get("vocab_size")
    if isinstance(padding, int) and isinstance(rows, int) and padding >= rows:
        raise UnsafeModelError(
            "unsafe_config",
            f"config.json: pad_token_id {padding} is no row of an embedding of vocab_size {rows}; the tokenizer was "
            "extended without the model: resize the embeddings and save the model again, or set pad_token_id to null",
        )
    for name in ("dtype", "torch_dtype"):
        if config.get(name) not in DTYPES:
            raise UnsupportedModelError(
                f"config.json: {name} is {str(config[name])[:40]!r}; supported are "
                + ", ".join(sorted(filter(None, DTYPES)))
            )
    return str(model_type)
