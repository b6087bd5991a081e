"""Parts of a model with their weights: one decoder layer, or everything around the layers."""

from collections.abc import Iterable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from spq_core.errors import ArtifactError, NumericalError, WeightsMismatchError
from spq_core.models.blocked import BlockedModel
from spq_core.models.checkpoint import Checkpoint, open_checkpoint
from spq_core.models.finite import all_finite
from spq_core.models.skeleton import Skeleton, load_skeleton


def open_model(folder: Path, device: str = "cpu") -> tuple[Skeleton, Checkpoint]:
    """The structure of a model folder, and where its weights are.

    Args:
        device: where tensors go that are read later.

    Raises:
        SpqError: see `load_skeleton` and `open_checkpoint`.
    """
    skeleton = load_skeleton(folder)
    return skeleton, open_checkpoint(folder, device).of_model(skeleton.model)


def load_layer(skeleton: Skeleton, checkpoint: Checkpoint, index: int) -> nn.Module:
    """Return decoder layer `index` with its weights in float32.

    Raises:
        NumericalError: a weight is NaN or infinite.
    """
    layer = skeleton.empty_layer(index)
    transposed = replace_conv1d(layer)
    prefix = skeleton.layer_path(index)
    stored = checkpoint.read(f"{prefix}.{name}" for name in layer.state_dict())
    tensors = {name.removeprefix(f"{prefix}."): tensor.float() for name, tensor in stored.items()}
    for name in transposed:
        tensors[name] = tensors[name].T.contiguous()
    _require_finite(prefix, tensors.items())
    fill(layer, tensors)
    return layer.to(checkpoint.device)


def blocked_source(skeleton: Skeleton, checkpoint: Checkpoint) -> BlockedModel:
    """The model of a checkpoint, part by part."""
    return BlockedModel(
        skeleton,
        partial(load_layer, skeleton, checkpoint),
        partial(load_rest, skeleton, checkpoint),
    )


def replace_conv1d(layer: nn.Module) -> list[str]:
    """Put linear layers where GPT-2 has its transposed ones; return the names of their weights."""
    found = [(name, module) for name, module in layer.named_modules() if isinstance(module, Conv1D)]
    for name, module in found:
        n_in, n_out = module.weight.shape
        layer.set_submodule(name, nn.Linear(n_in, n_out, device="meta"))
    return [f"{name}.weight" for name, _ in found]


def load_rest(skeleton: Skeleton, checkpoint: Checkpoint) -> PreTrainedModel:
    """Return embedding, final norm and head in their stored dtype; a tied head shares its matrix."""
    rest = skeleton.empty_rest()
    shared = f"{skeleton.head_path}.weight" if skeleton.tied else None
    names = [name for name in rest.state_dict() if name != shared]
    tensors = checkpoint.read(names)
    _require_finite("outside the decoder layers", tensors.items())
    if shared is not None:
        _require_one_matrix(skeleton, checkpoint, tensors)
        tensors[shared] = tensors[f"{skeleton.embedding_path}.weight"]
    fill(rest, tensors)
    if shared is not None:
        head, embedding = (
            rest.get_submodule(path) for path in (skeleton.head_path, skeleton.embedding_path)
        )
        head.weight = embedding.weight
    return rest.to(checkpoint.device)


def _require_one_matrix(
    skeleton: Skeleton, checkpoint: Checkpoint, tensors: dict[str, Tensor]
) -> None:
    """A checkpoint may repeat a tied matrix under the head's name, but not hold another there."""
    head = f"{skeleton.head_path}.weight"
    if head in checkpoint.tensors and not torch.equal(
        checkpoint.read([head])[head], tensors[f"{skeleton.embedding_path}.weight"]
    ):
        raise WeightsMismatchError(
            f"config.json ties head and embedding, but the weights hold a different {head}; "
            "set tie_word_embeddings to false if that is meant"
        )


def fill(block: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Give a block's parameters their values without copying them.

    Raises:
        ArtifactError: a tensor has another shape than the configuration says.
    """
    try:
        block.load_state_dict(tensors, strict=True, assign=True)
    except RuntimeError as error:
        raise ArtifactError(
            f"the weights do not fit config.json: {str(error).splitlines()[-1].strip()}"
        ) from None
    block.requires_grad_(requires_grad=False)


def _require_finite(prefix: str, tensors: Iterable[tuple[str, Tensor]]) -> None:
    for name, tensor in tensors:
        if not all_finite(tensor):
            raise NumericalError(prefix, name)
