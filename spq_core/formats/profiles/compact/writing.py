"""Blocks and config.json of an artifact in our forms."""

from typing import Any

import torch
from torch import nn

from spq_core.formats.conversion import to_stored
from spq_core.formats.layer import Layout
from spq_core.formats.layouts import changed_layouts
from spq_core.formats.profiles.format import CLASS_PREFIX, FORMAT_VERSION, METHOD
from spq_core.formats.profiles.stored_model import StoredModel
from spq_core.models.architectures import ARTIFACT_PREFIX


def store_block(
    path: str, block: nn.Module, original: nn.Module, dtype: torch.dtype
) -> dict[str, Layout]:
    """Replace layers by their stored form."""
    del dtype
    to_stored(block)
    return changed_layouts(path, block, original)


def config(stored: StoredModel) -> dict[str, Any]:
    """The source's config.json with our model type and the layouts of the changed modules."""
    skeleton, layouts = stored.skeleton, stored.layouts
    shared: tuple[str, ...] = ()
    if stored.head_shares_codes and skeleton.head_path in layouts:
        shared = layouts[skeleton.head_path].shared_parts
    return stored.document() | {
        "model_type": f"{ARTIFACT_PREFIX}{skeleton.config.model_type}",
        "architectures": [f"{CLASS_PREFIX}{type(skeleton.model).__name__}"],
        "tie_word_embeddings": stored.head_shares_codes,
        "dtype": str(stored.dtype).removeprefix("torch."),
        "quantization_config": {
            "quant_method": METHOD,
            "format_version": FORMAT_VERSION,
            "modules": {name: layout.model_dump() for name, layout in layouts.items()},
            "tied": {
                f"{skeleton.head_path}.{part}": f"{skeleton.embedding_path}.{part}"
                for part in shared
            },
        },
    }
