"""What llama.cpp calls types of models, and what it wants of them beside weights. Free of torch.

Keys are those of ggml's `docs/gguf.md`; what a graph of llama.cpp does otherwise than transformers (rows of heads in another order,
norms with their one added) is said here, and done in `tensors`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Config = Mapping[str, Any]
"""Of the part that reads and writes text, as transformers completes it."""
Keys = dict[str, Any]
SLIDING = "sliding_attention"


def _none(_config: Config) -> Keys:
    return {}


def _no_objection(_config: Config) -> str:
    return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """How llama.cpp runs a type of models."""

    name: str
    """In `general.architecture`."""
    keys: Callable[[Config], Keys] = _none
    """What it wants to know beside what all want."""
    interleaved: bool = False
    """Whether rotary halves of query and key heads are interleaved there."""
    fused_by_head: bool = False
    """Whether rows of a fused projection are ordered by head here, and by query, key and value there."""
    raised_norms: bool = False
    """Whether norms multiply by one more than their weight here."""
    windows: bool = False
    """Whether its graph has sliding windows."""
    objection: Callable[[Config], str] = _no_objection
    """Why it cannot run a model of that configuration; empty if it can."""


def _rotated(config: Config) -> Keys:
    return {"rope.dimension_count": rotary_width(config)}


def rotary_width(config: Config) -> int:
    """Of a head, what is rotated."""
    parameters = config.get("rope_parameters") or {}
    share = parameters.get("partial_rotary_factor", config.get("partial_rotary_factor")) or 1.0
    return int(share * head_width(config))


def head_width(config: Config) -> int:
    """Of a query head."""
    given = config.get("head_dim")
    return int(given or config["hidden_size"] // config["num_attention_heads"])


def _with_vocabulary(config: Config) -> Keys:
    return {**_rotated(config), "vocab_size": config["vocab_size"]}


def _granite(config: Config) -> Keys:
    return {
        **_with_vocabulary(config),
        "attention.scale": float(config["attention_multiplier"]),
        "embedding_scale": float(config["embedding_multiplier"]),
        "residual_scale": float(config["residual_multiplier"]),
        "logit_scale": float(config["logits_scaling"]),
    }


def _gemma2(config: Config) -> Keys:
    return {
        "attn_logit_softcapping": float(config["attn_logit_softcapping"]),
        "final_logit_softcapping": float(config["final_logit_softcapping"]),
    }


def _gemma2_objection(config: Config) -> str:
    caps = ("attn_logit_softcapping", "final_logit_softcapping")
    if any(cap in config and not config[cap] for cap in caps):
        return "its graph of Gemma 2 caps logits, and this model does not"
    return _scaled_by_head(config)


def _scaled_by_head(config: Config) -> str:
    """Graphs of Gemma scale queries by the width of a head, or by that of all where there are 46 or 62 layers."""
    scalar = config.get("query_pre_attn_scalar")
    if scalar is None or scalar == head_width(config):
        return ""
    width = config["hidden_size"] // config["num_attention_heads"]
    known = {("gemma2", 46), ("gemma3_text", 62)}
    if scalar == width and (config["model_type"], config["num_hidden_layers"]) in known:
        return ""
    return f"its graph scales queries by the width of a head, and query_pre_attn_scalar is {scalar}"


def _patterned(config: Config) -> Keys:
    """Which layers have a window."""
    kinds = config.get("layer_types") or []
    if not config.get("sliding_window") or SLIDING not in kinds:
        return {}
    return {"attention.sliding_window_pattern": [kind == SLIDING for kind in kinds]}


def _every_nth(config: Config, nth: int) -> str:
    """Graphs that know which layers have a window by their number alone."""
    kinds = config.get("layer_types") or []
    wanted = [SLIDING if (at + 1) % nth else "full_attention" for at in range(len(kinds))]
    if kinds and list(kinds) != wanted:
        return f"its graph has a layer with full attention after every {nth - 1} with a window, and layer_types say otherwise"
    return ""


def _gemma3_objection(config: Config) -> str:
    if config.get("attn_logit_softcapping"):
        return "its graph of Gemma 3 caps no logits of attention"
    return _every_nth(config, 6) or _scaled_by_head(config)


def _gemma3(config: Config) -> Keys:
    cap = config.get("final_logit_softcapping")
    return {"final_logit_softcapping": float(cap)} if cap else {}


def _smollm3_objection(config: Config) -> str:
    given = config.get("no_rope_layers")
    wanted = [int((at + 1) % 4 != 0) for at in range(config["num_hidden_layers"])]
    if given is not None and list(given) != wanted:
        return "its graph leaves out rotary positions in every fourth layer, and no_rope_layers say otherwise"
    return ""


def _phi3(config: Config) -> Keys:
    parameters = config.get("rope_parameters") or {}
    original = parameters.get("original_max_position_embeddings") or config.get(
        "original_max_position_embeddings"
    )
    return {
        **_rotated(config),
        "rope.scaling.original_context_length": int(original or config["max_position_embeddings"]),
        "attention.sliding_window": int(config.get("sliding_window") or 0),
    }


def _residual_in_parallel(config: Config) -> Keys:
    return {**_rotated(config), "use_parallel_residual": bool(config["use_parallel_residual"])}


def _stablelm_objection(config: Config) -> str:
    if config.get("qk_layernorm"):
        return "norms of single heads are named otherwise than they are held here"
    if config.get("use_parallel_residual"):
        return "its graph of StableLM in parallel has no second norm"
    return ""


def _olmo(config: Config) -> Keys:
    clip = config.get("clip_qkv")
    return {
        "attention.layer_norm_epsilon": 1e-5,
        **({"attention.clamp_kqv": float(clip)} if clip else {}),
    }


def _cohere(config: Config) -> Keys:
    return {"logit_scale": float(config["logit_scale"]), "rope.scaling.type": "none"}


def _cohere_objection(config: Config) -> str:
    return "norms of queries and keys have another shape there" if config.get("use_qk_norm") else ""


def _of_one_kind(activation: str) -> Callable[[Config], str]:
    def objection(config: Config) -> str:
        given = config.get("hidden_act") or config.get("activation_function") or activation
        if given not in {activation, *_ALIKE.get(activation, ())}:
            return f"its graph has the activation {activation}, and the model {given}"
        return ""

    return objection


_ALIKE = {"gelu": ("gelu_new", "gelu_pytorch_tanh", "gelu_fast"), "silu": ("swish",)}
"""llama.cpp has one GELU, by tanh; the exact one differs from it by less than its 8-bit activations do."""

ARCHITECTURES: dict[str, Architecture] = {
    "llama": Architecture(name="llama", keys=_with_vocabulary, interleaved=True),
    "mistral": Architecture(name="llama", keys=_with_vocabulary, interleaved=True),
    "smollm3": Architecture(
        name="smollm3", keys=_with_vocabulary, interleaved=True, objection=_smollm3_objection
    ),
    "granite": Architecture(name="granite", keys=_granite, interleaved=True),
    "arcee": Architecture(name="arcee", keys=_with_vocabulary, interleaved=True),
    "qwen2": Architecture(name="qwen2"),
    "qwen3": Architecture(name="qwen3"),
    "seed_oss": Architecture(name="seed_oss"),
    "gemma": Architecture(name="gemma", raised_norms=True, objection=_scaled_by_head),
    "gemma2": Architecture(
        name="gemma2", keys=_gemma2, raised_norms=True, windows=True, objection=_gemma2_objection
    ),
    "gemma3_text": Architecture(
        name="gemma3", keys=_gemma3, raised_norms=True, windows=True, objection=_gemma3_objection
    ),
    "phi3": Architecture(name="phi3", keys=_phi3, windows=True),
    "phi": Architecture(name="phi2", keys=_rotated),
    "olmo": Architecture(name="olmo", keys=_olmo, interleaved=True),
    "olmo2": Architecture(name="olmo2"),
    "olmo3": Architecture(name="olmo2", keys=_patterned, windows=True),
    "starcoder2": Architecture(name="starcoder2"),
    "stablelm": Architecture(
        name="stablelm", keys=_residual_in_parallel, objection=_stablelm_objection
    ),
    "cohere": Architecture(name="command-r", keys=_cohere, objection=_cohere_objection),
    "nemotron": Architecture(name="nemotron", keys=_with_vocabulary, raised_norms=True),
    "gpt2": Architecture(name="gpt2", objection=_of_one_kind("gelu")),
    "gpt_neox": Architecture(
        name="gptneox",
        keys=_residual_in_parallel,
        fused_by_head=True,
        objection=_of_one_kind("gelu"),
    ),
}
"""By model type in config.json: those whose graph and names were compared with ours, logit by logit."""
