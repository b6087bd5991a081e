"""A configuration as small as can be that has every kind of layer of another one."""

from collections.abc import Mapping
from typing import Any

from transformers import PretrainedConfig

from spq_core.models.architectures import EXPERT_COUNTS

LAYERS = 2
HEADS = 4
HEAD_DIM = 16
INNER = 128
GROUP = 32
EXPERTS = 4
EXPERT_WIDTHS = (
    "moe_intermediate_size", "shared_expert_intermediate_size", "shared_intermediate_size", "expert_ffn_hidden_size",
)  # fmt: skip
MOST_KINDS = 4
"""Of layers that are tried."""
EXPERTS_PER_TOKEN = ("num_experts_per_tok", "num_experts_per_token", "moe_k", "moe_topk")
SHARED_EXPERTS = ("n_shared_experts", "num_shared_experts", "moe_num_shared_experts")
OF_EXPERTS = frozenset((*EXPERT_COUNTS, *EXPERT_WIDTHS, *EXPERTS_PER_TOKEN, *SHARED_EXPERTS))
"""What released configurations of mixtures say, and the defaults of some types do not."""


def toy_config(config: PretrainedConfig) -> PretrainedConfig:
    """The configuration with two layers and small sizes; what is per layer is cut to those."""
    document: dict[str, Any] = config.to_dict()
    sizes = _sizes(config, document)
    indices = _cut_layers(document, config.num_hidden_layers)
    names: dict[str, str] = dict(type(config).attribute_map)
    for name, size in (*sizes.items(), ("num_hidden_layers", len(indices))):
        stored = names.get(name, name)
        if document.get(stored) is not None or (name in OF_EXPERTS and stored in document):
            document[stored] = size
    return type(config).from_dict(document)


def _sizes(config: PretrainedConfig, document: Mapping[str, Any]) -> dict[str, int]:
    """Small sizes by all names that configurations have for them."""
    counts = (document.get("num_key_value_heads"), document.get("num_kv_heads"))
    heads = getattr(config, "num_attention_heads", None) or 1  # Mamba has none
    of_keys = next((count for count in counts if count), heads)
    kv_heads = max(1, HEADS * of_keys // heads)
    hidden = HEADS * HEAD_DIM
    sizes = {
        "hidden_size": hidden, "num_attention_heads": HEADS, "head_dim": HEAD_DIM,
        "num_key_value_heads": kv_heads, "num_kv_heads": kv_heads, "intermediate_size": INNER,
        "ffn_dim": INNER, "n_inner": INNER, "ffn_hidden_size": INNER, "word_embed_proj_dim": hidden,
        "rotary_dim": HEAD_DIM // 2,
    }  # fmt: skip
    sizes |= dict.fromkeys(EXPERT_COUNTS, EXPERTS) | dict.fromkeys(EXPERT_WIDTHS, INNER)
    sizes |= {name: min(2, document.get(name) or 2) for name in EXPERTS_PER_TOKEN}
    sizes |= dict.fromkeys(("n_group", "topk_group", "first_k_dense_replace", *SHARED_EXPERTS), 1)
    sizes |= {
        "linear_num_key_heads": 2, "linear_num_value_heads": HEADS, "linear_key_head_dim": HEAD_DIM,
        "linear_value_head_dim": HEAD_DIM, "hidden_size_per_layer_input": HEAD_DIM, "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_offset": 0,
    }  # fmt: skip
    if document.get("kv_lora_rank"):  # what `head_dim` names is then the rotated half of a head
        half = HEAD_DIM // 2
        sizes |= {
            "q_lora_rank": HEAD_DIM, "kv_lora_rank": HEAD_DIM, "qk_rope_head_dim": half, "qk_nope_head_dim": half,
            "v_head_dim": HEAD_DIM, "qk_head_dim": HEAD_DIM, "head_dim": half,
        }  # fmt: skip
    return sizes | _state_space(document, hidden)


def _cut_layers(document: dict[str, Any], count: int) -> list[int]:
    """Leave one layer of each kind in a configuration of `count`; return which."""
    of_layers = {
        name: value
        for name, value in document.items()
        if isinstance(value, list) and len(value) == count
    }
    indices = _of_each_kind(of_layers)
    document |= {name: [value[index] for index in indices] for name, value in of_layers.items()}
    if document.get("attn_layer_indices"):
        document["attn_layer_indices"] = [len(indices) - 1]
    if document.get("hybrid_layer_ids"):
        kinds = document["layers_block_type"]
        document["hybrid_layer_ids"] = [at for at, kind in enumerate(kinds) if kind == "hybrid"]
    by_layer = document.get("per_layer_config")
    if isinstance(by_layer, dict):
        kept = ((indices.index(int(at)), one) for at, one in by_layer.items() if int(at) in indices)
        document["per_layer_config"] = dict(kept)
    return indices


def _state_space(document: Mapping[str, Any], hidden: int) -> dict[str, int]:
    """Sizes of layers that carry a state along, whose inner width is a multiple of the hidden one."""
    widening = int(document.get("mamba_expand") or document.get("expand") or 2)
    heads = widening * hidden // HEAD_DIM
    sizes = {
        "mamba_n_heads": heads, "mamba_d_head": HEAD_DIM, "mamba_d_ssm": widening * hidden, "mamba_d_state": HEAD_DIM,
        "mamba_chunk_size": HEAD_DIM, "n_mamba_heads": heads, "mamba_headdim": HEAD_DIM, "attention_hidden_size": 2 * hidden,
        "attention_head_dim": 2 * HEAD_DIM,
    }  # fmt: skip
    if document.get("state_size"):  # Mamba alone has shorter names for the same
        sizes |= {
            "num_heads": heads, "head_dim": HEAD_DIM, "n_groups": 1, "state_size": HEAD_DIM, "chunk_size": HEAD_DIM,
            "intermediate_size": widening * hidden, "time_step_rank": HEAD_DIM // 4,
        }  # fmt: skip
    return sizes


def _of_each_kind(of_layers: Mapping[str, list[Any]]) -> list[int]:
    """The first layer of each kind, by all lists with an entry for each layer; two layers where there are no kinds."""
    kinds: dict[str, int] = {}
    for index, values in enumerate(zip(*of_layers.values(), strict=True)):
        kinds.setdefault(repr(values), index)
    found = sorted(kinds.values())[:MOST_KINDS]
    return found if len(found) > 1 else list(range(LAYERS))
