"""What a profile writes config.json from."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from transformers import PretrainedConfig

from spq_core.formats.layer import Layout
from spq_core.models.skeleton import Skeleton

WIDTH_KEYS = ("intermediate_size", "ffn_dim", "n_inner")
"""How configurations call the width of an MLP."""


class StoredModel(NamedTuple):
    """A model all of whose blocks are written."""

    skeleton: Skeleton
    layouts: Mapping[str, Layout]
    """Of modules that differ from the source's, by full name."""
    dtype: torch.dtype
    """Of floating-point tensors other than scales."""
    head_shares_codes: bool
    """Whether the head's tensors are the embedding's."""
    changes: Mapping[str, Any] = MappingProxyType({})
    """Entries of the text part's configuration that are others than the source's."""

    def document(self) -> dict[str, Any]:
        """The source's config.json with the changes."""
        config = self.skeleton.config
        document = source_document(config)
        if self.skeleton.text_config is config:
            return {**document, **self.changes}
        for name, part in document.items():
            if getattr(config, name, None) is self.skeleton.text_config:
                document[name] = {**part, **self.changes}
        return document


def source_document(config: PretrainedConfig) -> dict[str, Any]:
    """The source's config.json, with the version that wrote it: tokenizers are repaired by version."""
    document: dict[str, Any] = config.to_dict()
    for key in ("_name_or_path", "transformers_version"):
        document.pop(key, None)
    written_by = getattr(config, "transformers_version", None)
    return document | ({"transformers_version": written_by} if written_by else {})


def stock_document(stored: StoredModel) -> dict[str, Any]:
    """config.json for the source's own classes; MLPs of another width have one width in all layers."""
    skeleton = stored.skeleton
    document = stored.document() | {
        "architectures": [type(skeleton.model).__name__],
        "dtype": str(stored.dtype).removeprefix("torch."),
    }
    layout = stored.layouts.get(f"{skeleton.layer_path(0)}.{skeleton.family.mlp_out}")
    width = getattr(layout, "n_in", None)
    if width is not None:
        document |= {key: width for key in WIDTH_KEYS if document.get(key) is not None}
    return document
