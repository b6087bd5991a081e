"""The config.json of an artifact."""

from collections.abc import Mapping
from typing import Any

import torch
from transformers import PretrainedConfig

from spq_core.formats.layout import CodedLayout, Int8Layout, Layout, PackedLayout
from spq_core.formats.profiles.names import CLASS_PREFIX, FORMAT_VERSION, METHOD
from spq_core.models.architectures import ARTIFACT_PREFIX
from spq_core.models.skeleton import Skeleton


def artifact_config(
    skeleton: Skeleton, layouts: Mapping[str, Layout], dtype: torch.dtype, *, shares: bool
) -> dict[str, Any]:
    """The source's config.json with our model type and the layouts of the changed modules.

    Args:
        dtype: of floating-point tensors other than scales.
        shares: whether the head's tensors are the embedding's.
    """
    config = source_document(skeleton.config)
    tied = {}
    if shares and skeleton.head_path in layouts:
        names = _tied_parts(layouts[skeleton.head_path])
        tied = {
            f"{skeleton.head_path}.{part}": f"{skeleton.embedding_path}.{part}" for part in names
        }
    return config | {
        "model_type": f"{ARTIFACT_PREFIX}{skeleton.config.model_type}",
        "architectures": [f"{CLASS_PREFIX}{type(skeleton.model).__name__}"],
        "tie_word_embeddings": shares,
        "dtype": str(dtype).removeprefix("torch."),
        "quantization_config": {
            "quant_method": METHOD,
            "format_version": FORMAT_VERSION,
            "modules": {name: layout.model_dump() for name, layout in layouts.items()},
            "tied": tied,
        },
    }


def source_document(config: PretrainedConfig) -> dict[str, Any]:
    """The source's config.json, with the version that wrote it: tokenizers are repaired by version."""
    document: dict[str, Any] = config.to_dict()
    for key in ("_name_or_path", "transformers_version"):
        document.pop(key, None)
    written_by = getattr(config, "transformers_version", None)
    return document | ({"transformers_version": written_by} if written_by else {})


def _tied_parts(layout: Layout) -> tuple[str, ...]:
    """Names of the tensors that a tied head takes over from its embedding."""
    match layout:
        case Int8Layout():
            return ("codes", "scale")
        case PackedLayout():
            return ("packed", "scale", "zero")
        case CodedLayout():
            return ("packed",)
        case _:
            return ("weight",)
