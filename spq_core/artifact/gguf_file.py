"""An artifact of profile gguf, read back into the model that it was made of: names, order of rows and norms as transformers has them.

So what the file says is compared with what was meant, and its weights are measured like those of any other model. Programs that run such files
read them by themselves.
"""

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from gguf import GGUFReader, ReaderTensor
from torch import Tensor, nn
from transformers import PreTrainedModel

from spq_core.errors import ArtifactError
from spq_core.formats.ggml.linear import GgmlEmbedding, GgmlLinear
from spq_core.formats.ggml.types import BLOCK_TYPES, BlockType
from spq_core.formats.slicing import bias_of, dense_linear, is_float, is_table, output_scale_of
from spq_core.models.blocked import BlockedModel
from spq_core.models.blocks import fill, replace_conv1d
from spq_core.models.gguf.architectures import Architecture, Config
from spq_core.models.gguf.metadata import architecture_of
from spq_core.models.gguf.tensors import GgufNames, added, row_order
from spq_core.models.skeleton import Skeleton, load_skeleton
from spq_core.models.weight_files import gguf_files, weight_files

KINDS = {kind.number: kind for kind in BLOCK_TYPES}
FLOATS = {"F32": torch.float32, "F16": torch.float16}
BFLOAT16 = "BF16"


def gguf_file(folder: Path) -> Path | None:
    """The only weights of a folder, if they are in one GGUF file beside the model's config.json."""
    if folder.suffix == ".gguf" or not (folder / "config.json").is_file() or weight_files(folder):
        return None
    files = gguf_files(folder)
    return files[0] if len(files) == 1 else None


def open_gguf(folder: Path, file: Path) -> BlockedModel:
    """The model, layer by layer.

    Raises:
        ArtifactError, UnsupportedModelError: it is another one than config.json says.
    """
    skeleton = load_skeleton(folder)
    document: dict[str, Any] = skeleton.config.to_dict()
    architecture = architecture_of(document)
    try:
        tensors = {tensor.name: tensor for tensor in GGUFReader(file).tensors}
    except (ValueError, IndexError, KeyError, OSError) as error:
        raise ArtifactError(f"{file.name} is not a GGUF file that can be read: {error}") from None
    there = _File(
        file.name, tensors, GgufNames(architecture, skeleton.n_layers), architecture, document
    )
    return BlockedModel(skeleton, partial(_layer, skeleton, there), partial(_rest, skeleton, there))


def load_gguf(folder: Path, file: Path) -> PreTrainedModel:
    """The model, whole."""
    blocked = open_gguf(folder, file)
    model = blocked.rest()
    layers = nn.ModuleList([blocked.layer(index) for index in range(blocked.skeleton.n_layers)])
    model.set_submodule(blocked.skeleton.layers_path, layers)
    return model.eval()


class _File(NamedTuple):
    """Tensors by the names of llama.cpp."""

    name: str
    tensors: dict[str, ReaderTensor]
    names: GgufNames
    architecture: Architecture
    config: Config

    def has(self, name: str) -> bool:
        """Whether a model's tensor is there."""
        return self.names.of(name) in self.tensors

    def read(self, name: str) -> tuple[Tensor, BlockType | None]:
        """A model's tensor in its own order: blocks, or numbers in float32.

        Raises:
            ArtifactError: it is not there, or of a type that is not read.
        """
        tensor = self.tensors.get(self.names.of(name))
        if tensor is None:
            raise ArtifactError(f"{self.name} has no {self.names.of(name)!r}, which is {name}")
        kind = KINDS.get(int(tensor.tensor_type))
        values = _blocks(tensor) if kind is not None else self._numbers(tensor)
        order = row_order(name, values.shape[0], self.architecture, self.config)
        if order is not None:
            back = torch.empty_like(values)
            back[order] = values
            values = back
        return values if kind else values - added(name, self.architecture), kind

    def _numbers(self, tensor: ReaderTensor) -> Tensor:
        name = tensor.tensor_type.name
        raw = torch.from_numpy(np.array(tensor.data))
        if name == BFLOAT16:
            return raw.view(torch.bfloat16).float()
        if name not in FLOATS:
            raise ArtifactError(
                f"{self.name}: {tensor.name!r} is of type {name}, which is not read"
            )
        return raw.float()


def _blocks(tensor: ReaderTensor) -> Tensor:
    return torch.from_numpy(np.array(tensor.data)).view(torch.uint8)


def _layer(skeleton: Skeleton, file: _File, index: int) -> nn.Module:
    """A decoder layer; what is floating point is float32."""
    layer = skeleton.empty_layer(index)
    replace_conv1d(layer)
    _fill_from(layer, f"{skeleton.layer_path(index)}.", file)
    return layer


def _rest(skeleton: Skeleton, file: _File) -> PreTrainedModel:
    """Embedding, final norm and head."""
    rest = skeleton.empty_rest()
    head = rest.get_submodule(skeleton.head_path)
    shares = skeleton.tied or not file.has(f"{skeleton.head_path}.weight")
    if shares:  # filled with what the embedding becomes
        rest.set_submodule(skeleton.head_path, nn.Identity())
    _fill_from(rest, "", file)
    if shares:
        table = rest.get_submodule(skeleton.embedding_path)
        bias = getattr(head, "bias", None)
        if bias is not None:
            bias, _ = file.read(f"{skeleton.head_path}.bias")
        rest.set_submodule(skeleton.head_path, _tied(table, bias))
    return rest


def _tied(table: Any, bias: Tensor | None) -> nn.Module:
    if not is_table(table):
        head: nn.Module = table.tied_head(bias)
        return head
    return dense_linear(table.weight, bias)


def _fill_from(block: nn.Module, prefix: str, file: _File) -> None:
    """Give a block's tensors their values; matrices in blocks become layers of such."""
    tensors: dict[str, Tensor] = {}
    for name in list(block.state_dict()):
        path, _, part = name.rpartition(".")
        values, kind = file.read(prefix + name)
        if kind is None:
            tensors[name] = values
            continue
        module = block.get_submodule(path)
        if part == "weight" and is_table(module):
            made: nn.Module = GgmlEmbedding(values, kind, torch.float32, output_scale_of(module))
        elif part == "weight" and is_float(module):
            made = GgmlLinear(values, kind, bias_of(module))
        else:
            raise ArtifactError(f"{file.name}: {prefix}{name} is no matrix, and stored as one")
        block.set_submodule(path, made)
        tensors[f"{path}.blocks"] = values
    fill(block, tensors)
