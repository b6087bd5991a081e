"""Names, order and values of tensors as llama.cpp's graphs want them, and back."""

import math
from collections.abc import Mapping
from typing import Any

import gguf
import torch
from jaxtyping import Int64
from torch import Tensor

from spq_core.errors import UnsupportedModelError
from spq_core.models.gguf.architectures import Architecture, Config, head_width, rotary_width

QUERIES = (".q_proj.weight", ".q_proj.bias")
KEYS = (".k_proj.weight", ".k_proj.bias")
FUSED = (".query_key_value.weight", ".query_key_value.bias")
NORMS = ("norm.weight",)
HALVES = 2


class GgufNames:
    """What tensors of a model are called in its GGUF file."""

    def __init__(self, architecture: Architecture, n_layers: int) -> None:
        """Take gguf's own table for the architecture."""
        kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
        self._map = gguf.get_tensor_name_map(kinds[architecture.name], n_layers)

    def of(self, name: str) -> str:
        """Of one tensor.

        Raises:
            UnsupportedModelError: llama.cpp has no place for it.
        """
        found = self._map.get_name(name, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise UnsupportedModelError(
                f"profile gguf: llama.cpp has no place for {name!r} in models of this type; use profile compact"
            )
        return found


def row_order(
    name: str, rows: int, architecture: Architecture, config: Config
) -> Int64[Tensor, " rows"] | None:
    """Which row of ours each row there is; None where the order is the same."""
    if architecture.interleaved and name.endswith((*QUERIES, *KEYS)):
        return interleaved_rows(rows, head_width(config))
    if architecture.fused_by_head and name.endswith(FUSED):
        return by_part(rows, int(config["num_attention_heads"]))
    return None


def interleaved_rows(rows: int, width: int) -> Int64[Tensor, " rows"]:
    """Each head's first and second halves, a row of one after a row of the other."""
    return torch.arange(rows).view(-1, HALVES, width // HALVES).transpose(1, 2).flatten()


def by_part(rows: int, heads: int) -> Int64[Tensor, " rows"]:
    """All queries, then all keys, then all values."""
    return torch.arange(rows).view(heads, 3, -1).transpose(0, 1).flatten()


def added(name: str, architecture: Architecture) -> float:
    """What is added to a tensor's values there."""
    return 1.0 if architecture.raised_norms and name.endswith(NORMS) else 0.0


def extra_tensors(config: Config) -> dict[str, Tensor]:
    """Tensors of a file that the model has no weights for: factors of its rotary positions."""
    rope: Mapping[str, Any] = config.get("rope_parameters") or {}
    kind = rope.get("rope_type")
    if kind == "llama3":
        return {"rope_freqs.weight": _llama3_factors(rope, rotary_width(config))}
    if kind in {"longrope", "su"}:
        return {
            f"rope_factors_{length}.weight": torch.tensor(
                rope[f"{length}_factor"], dtype=torch.float32
            )
            for length in ("long", "short")
        }
    return {}


def _llama3_factors(rope: Mapping[str, Any], width: int) -> Tensor:
    """By what each frequency is divided (Llama 3.1: long waves are stretched, short ones stay, those between are blended)."""
    exponents = torch.arange(0, width, HALVES, dtype=torch.float64) / width
    waves = 2 * math.pi * float(rope["rope_theta"]) ** exponents
    factor, context = float(rope["factor"]), float(rope["original_max_position_embeddings"])
    low, high = float(rope["low_freq_factor"]), float(rope["high_freq_factor"])
    smooth = ((context / waves - low) / (high - low)).clamp(0, 1)
    return (1 / ((1 - smooth) / factor + smooth)).float()
