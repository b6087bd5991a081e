"""What a GGUF file says of a model's sizes and positions. Free of torch."""

from collections.abc import Iterator, Mapping
from typing import Any

from spq_core.errors import UnsupportedModelError
from spq_core.models.gguf.architectures import (
    ARCHITECTURES,
    SLIDING,
    Architecture,
    Config,
    Keys,
    head_width,
)

SIZES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("block_count", ("num_hidden_layers", "n_layer", "n_layers")),
    ("embedding_length", ("hidden_size", "n_embd", "d_model")),
    ("attention.head_count", ("num_attention_heads", "n_head", "n_heads")),
    ("attention.head_count_kv", ("num_key_value_heads", "num_kv_heads")),
)
EPSILONS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("attention.layer_norm_rms_epsilon", ("rms_norm_eps",)),
    ("attention.layer_norm_epsilon", ("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps")),
)  # fmt: skip
CONTEXT = ("max_position_embeddings", "n_positions", "n_ctx")
WIDTHS = ("intermediate_size", "n_inner")
SCALINGS: dict[str, dict[str, str]] = {
    "yarn": {"attention_factor": "attn_factor", "beta_fast": "yarn_beta_fast", "beta_slow": "yarn_beta_slow"},
    "longrope": {"attention_factor": "attn_factor"}, "su": {"attention_factor": "attn_factor"},
}  # fmt: skip
"""By type: what they are called here and there."""
ROPE_TYPES = frozenset({"default", "linear", "yarn", "llama3", "longrope", "su"})


def objection_to(config: Config) -> str:
    """Why llama.cpp cannot run a model, or computes something else; empty if it does what transformers does."""
    kind = str(config.get("model_type"))
    if kind not in ARCHITECTURES:
        return (
            f"models of type {kind} are not written for llama.cpp, only {', '.join(ARCHITECTURES)}"
        )
    objection = ARCHITECTURES[kind].objection(config) or _rope_objection(config)
    return objection and f"llama.cpp would compute something else: {objection}"


def architecture_of(config: Config) -> Architecture:
    """How llama.cpp runs a model.

    Raises:
        UnsupportedModelError: it does not, or otherwise than transformers.
    """
    if objection := objection_to(config):
        raise UnsupportedModelError(f"profile gguf: {objection}; use profile compact")
    return ARCHITECTURES[str(config.get("model_type"))]


def model_keys(config: Config) -> Keys:
    """All of them, without those of the tokenizer; integers, floats, strings and lists.

    Raises:
        UnsupportedModelError: see `architecture_of`.
    """
    architecture = architecture_of(config)
    own: Keys = {}
    for key, names in SIZES:
        own |= _first(key, config, names, int)
    for key, names in EPSILONS:
        own |= _first(key, config, names, float)
    own["context_length"] = _context(config, architecture)
    own["feed_forward_length"] = _width(config)
    if config.get("head_dim"):
        own |= {
            "attention.key_length": head_width(config),
            "attention.value_length": head_width(config),
        }
    if architecture.windows and config.get("sliding_window"):
        own["attention.sliding_window"] = int(config["sliding_window"])
    own |= dict(_rope_keys(config))
    own |= architecture.keys(config)
    keys: Keys = {"general.architecture": architecture.name}
    return keys | {f"{architecture.name}.{key}": value for key, value in own.items()}


def _first(key: str, config: Config, names: tuple[str, ...], kind: type) -> Keys:
    value = next((config[name] for name in names if config.get(name) is not None), None)
    return {} if value is None else {key: kind(value)}


def _context(config: Config, architecture: Architecture) -> int:
    """Where a graph has no windows, no more than a window: up to there it computes the same."""
    positions = next(int(config[name]) for name in CONTEXT if config.get(name) is not None)
    window = config.get("sliding_window")
    kinds = config.get("layer_types")
    used = config.get("use_sliding_window", True) and (kinds is None or SLIDING in kinds)
    if window and used and not architecture.windows:
        return min(positions, int(window))
    return positions


def _width(config: Config) -> int:
    given = next((config[name] for name in WIDTHS if config.get(name) is not None), None)
    return int(given or 4 * (config.get("hidden_size") or config["n_embd"]))


# Rotary positions


def _everywhere(config: Config) -> Mapping[str, Any]:
    """Of layers with full attention, where layers differ."""
    parameters: Mapping[str, Any] = config.get("rope_parameters") or {}
    nested = parameters.get("full_attention")
    return nested if isinstance(nested, Mapping) else parameters


def _rope_objection(config: Config) -> str:
    kind = _everywhere(config).get("rope_type", "default")
    return "" if kind in ROPE_TYPES else f"it has no rotary positions of type {kind}"


def _rope_keys(config: Config) -> Iterator[tuple[str, Any]]:
    rope = _everywhere(config)
    if rope.get("rope_theta") is not None:
        yield "rope.freq_base", float(rope["rope_theta"])
    local = (config.get("rope_parameters") or {}).get(SLIDING)
    if isinstance(local, Mapping) and local.get("rope_theta") is not None:
        yield "rope.freq_base_swa", float(local["rope_theta"])
    kind = rope.get("rope_type", "default")
    yield from _scaling(kind, rope)


def _scaling(kind: str, rope: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    if kind in {"linear", "yarn"}:
        yield "rope.scaling.type", kind
        yield "rope.scaling.factor", float(rope["factor"])
    if kind == "yarn":
        yield "rope.scaling.original_context_length", int(rope["original_max_position_embeddings"])
    if kind in {"longrope", "su"}:
        yield "rope.scaling.type", "longrope"
    for ours, theirs in SCALINGS.get(kind, {}).items():
        if rope.get(ours) is not None:
            yield f"rope.scaling.{theirs}", float(rope[ours])
