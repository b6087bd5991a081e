"""A `compact` or `gguf` artifact, or a plain checkpoint, whose decoder layers are loaded one at a time.

What transformers' loader makes of the whole model (`quantizer`), made of one layer: the same layouts, the same
codes, the same forms that compute. So figures of a model that does not fit into memory are those of one that does.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from spq_core.artifact.gguf_file import gguf_file, open_gguf
from spq_core.errors import ArtifactError
from spq_core.formats.conversion import to_runtime
from spq_core.formats.layer import Layout
from spq_core.formats.layouts import install, parse_layouts
from spq_core.formats.profiles.format import METHOD
from spq_core.models.architectures import ALL_MODEL_TYPES, ARTIFACT_PREFIX
from spq_core.models.blocked import BlockedModel
from spq_core.models.blocks import blocked_source, fill, open_model
from spq_core.models.checkpoint import Checkpoint, open_checkpoint
from spq_core.models.model_folder import read_json_object
from spq_core.models.skeleton import Skeleton, load_skeleton


def open_blocked(folder: Path) -> BlockedModel | None:
    """The model in a folder, layer by layer; None for forms that only their own library can read.

    Raises:
        ArtifactError, UnsupportedModelError: the folder is none of a model.
    """
    config = read_json_object(folder / "config.json")
    kind = str(config.get("model_type")).removeprefix(ARTIFACT_PREFIX)
    quantization = config.get("quantization_config") or config.get("compression_config")
    if kind not in ALL_MODEL_TYPES:
        return None
    file = gguf_file(folder)
    if file is not None:
        return open_gguf(folder, file)
    if not quantization:
        return blocked_source(*open_model(folder))
    if not isinstance(quantization, dict) or quantization.get("quant_method") != METHOD:
        return None
    skeleton, checkpoint = load_skeleton(folder), open_checkpoint(folder)
    layouts = parse_layouts(quantization.get("modules") or {})
    return BlockedModel(
        skeleton,
        partial(_layer, skeleton, checkpoint, layouts),
        partial(_rest, skeleton, checkpoint, layouts, dict(quantization.get("tied") or {})),
    )


def _layer(
    skeleton: Skeleton, checkpoint: Checkpoint, layouts: Mapping[str, Layout], index: int
) -> nn.Module:
    """A decoder layer as it computes; what is floating point is float32."""
    path = skeleton.layer_path(index)
    layer = skeleton.empty_layer(index)
    prefix = f"{path}."
    own = {
        name.removeprefix(prefix): one for name, one in layouts.items() if name.startswith(prefix)
    }
    install(layer, own, checkpoint.dtype)
    stored = checkpoint.read(prefix + name for name in layer.state_dict())
    fill(layer, {name.removeprefix(prefix): tensor for name, tensor in stored.items()})
    to_runtime(layer)
    return layer.to(torch.float32)


def _rest(
    skeleton: Skeleton,
    checkpoint: Checkpoint,
    layouts: Mapping[str, Layout],
    tied: Mapping[str, str],
) -> PreTrainedModel:
    """Embedding, final norm and head."""
    rest = skeleton.empty_rest()
    inside = f"{skeleton.layers_path}."
    install(
        rest,
        {name: one for name, one in layouts.items() if not name.startswith(inside)},
        checkpoint.dtype,
    )
    shares = dict(tied)
    head, embedding = f"{skeleton.head_path}.weight", f"{skeleton.embedding_path}.weight"
    names = list(rest.state_dict())
    if skeleton.tied and head in names and embedding in names:
        shares.setdefault(head, embedding)
    stored = checkpoint.read(name for name in names if name not in shares)
    missing = [name for name in shares if name in names and shares[name] not in stored]
    if missing:
        raise ArtifactError(f"{checkpoint.folder.name}: nothing is stored for {missing[0]!r}")
    shared = {name: stored[other] for name, other in shares.items() if name in names}
    fill(rest, stored | shared)
    for name in shared:
        _share(rest, name, shares[name])
    to_runtime(rest)
    return rest


def _share(rest: nn.Module, name: str, other: str) -> None:
    """Let two modules have one parameter."""
    here, _, own = name.rpartition(".")
    there, _, theirs = other.rpartition(".")
    parameter: Any = getattr(rest.get_submodule(there), theirs)
    setattr(rest.get_submodule(here), own, parameter)
