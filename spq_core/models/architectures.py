"""Which architectures are accepted before any weight is read.

The structure of a loaded model decides what the stages touch (`spq_core.models.structure`); this
table only says which model types a repository may ask transformers to build, so that an unknown
one is refused from its config.json alone. It is free of torch.
"""

from collections.abc import Mapping
from typing import Any

from spq_core.errors import UnsafeModelError, UnsupportedModelError
from spq_core.models.unsafe_keys import refuse_unsafe_keys

SUPPORTED_MODEL_TYPES = (
    "llama", "mistral", "qwen2", "qwen3", "smollm3", "gemma2", "gemma3_text", "phi3", "opt",
    "gpt_neox", "gpt2",
)  # fmt: skip
DTYPES = (None, "float32", "float16", "bfloat16")
EXPERT_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
ARTIFACT_PREFIX = "spq_"
CAUSAL_SUFFIXES = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")


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
}
"""Larger numbers in a config.json are a mistake or a trap: building the model would take all memory."""


def _check_sizes(config: Mapping[str, Any]) -> None:
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
    hidden = _size(config, "hidden_size", "n_embd")
    layers = _size(config, "num_hidden_layers", "n_layer")
    mlp = _size(config, "intermediate_size", "ffn_dim", "n_inner")
    attention = _size(config, "num_attention_heads", "n_head") * _size(config, "head_dim")
    embedding = _size(config, "vocab_size") * (_size(config, "word_embed_proj_dim") or hidden)
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
    if config.get("quantization_config") or config.get("compression_config"):
        raise UnsafeModelError(
            "already_quantized",
            "config.json has a quantization_config: compressing quantized weights again hurts; name the base model",
        )
    refuse_unsafe_keys(config, "config.json")
    experts = next((name for name in EXPERT_COUNTS if config.get(name)), None)
    if experts is not None:
        raise UnsupportedModelError(
            f"config.json has {experts} {str(config[experts])[:20]}: mixture-of-experts models are not supported"
        )
    if model_type not in SUPPORTED_MODEL_TYPES:
        raise UnsupportedModelError(
            f"model type {model_type!r} is not supported; supported are {', '.join(SUPPORTED_MODEL_TYPES)}"
        )
    check_architectures(config)
    _check_sizes(config)
    padding, rows = config.get("pad_token_id"), config.get("vocab_size")
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
