"""A model without weights: its structure on the meta device, and where its parts are."""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from spq_core.errors import UnsupportedModelError
from spq_core.models.auto_class import auto_class, text_config
from spq_core.models.config import no_model_of, read_config
from spq_core.models.experts import separate_experts
from spq_core.models.family import Family
from spq_core.models.structure import match_family


@dataclass(frozen=True, slots=True, kw_only=True)
class Skeleton:
    """Structure of a causal language model; parameters are on meta, small buffers are real."""

    model: PreTrainedModel
    family: Family
    layers_path: str
    embedding_path: str
    head_path: str
    tied: bool
    """Whether head and embedding are one matrix."""

    @property
    def config(self) -> PretrainedConfig:
        """The source's configuration."""
        return self.model.config

    @property
    def text_config(self) -> PretrainedConfig:
        """That of the part that reads and writes text."""
        return text_config(self.model.config)

    @property
    def text_path(self) -> str:
        """The module that holds embedding and decoder layers."""
        return self.layers_path.rpartition(".")[0]

    def is_foreign(self, name: str) -> bool:
        """Whether a module or tensor belongs to a part that is neither embedding, layers nor head: towers for images."""
        if self.text_config is self.config:
            return False
        own = (f"{self.text_path}.", f"{self.embedding_path}.", f"{self.head_path}.")
        return not f"{name}.".startswith(own)

    @property
    def n_layers(self) -> int:
        """Number of decoder layers."""
        return int(self.text_config.num_hidden_layers)

    @property
    def widest_input(self) -> int:
        """Inputs of the widest matrix in a decoder layer."""
        layers = self.model.get_submodule(self.layers_path)
        shapes = [part.weight.shape for part in layers.modules() if isinstance(part, nn.Linear)]
        shapes += [part.weight.T.shape for part in layers.modules() if isinstance(part, Conv1D)]
        return max((int(n_in) for _, n_in in shapes), default=1)

    def matrix_sizes(self) -> dict[str, int]:
        """Weights of each matrix of the decoder layers, by full name."""
        layers = self.model.get_submodule(self.layers_path)
        return {
            f"{self.layers_path}.{name}": part.weight.numel()
            for name, part in layers.named_modules()
            if isinstance(part, nn.Linear | Conv1D)
        }

    def layer_path(self, index: int) -> str:
        """Dotted name of one decoder layer."""
        return f"{self.layers_path}.{index}"

    def empty_layer(self, index: int) -> nn.Module:
        """A copy of one decoder layer, parameters on meta."""
        layer: nn.Module = self.model.get_submodule(self.layer_path(index))
        return copy.deepcopy(layer)

    def empty_rest(self) -> PreTrainedModel:
        """A copy of the model without decoder layers: embedding, final norm, head."""
        rest = copy.deepcopy(self.model)
        rest.set_submodule(self.layers_path, nn.ModuleList())
        return rest


def load_skeleton(folder: Path) -> Skeleton:
    """Build the skeleton of a model folder from its config.json alone.

    Raises:
        UnsupportedModelError: transformers cannot build a model from it, or one no family describes.
    """
    config = read_config(folder)
    try:
        with init_empty_weights(include_buffers=False), _EmptyOnMeta():
            model = auto_class(config).from_config(config, dtype=torch.float32)
    except Exception as error:  # whatever a value of a stranger's configuration makes happen there
        raise no_model_of(folder, error) from error
    model.eval()
    separate_experts(model)
    layers_path = find_layers(model)
    layers = model.get_submodule(layers_path)
    return Skeleton(
        model=model,
        family=match_family([layers.get_submodule(name) for name, _ in layers.named_children()]),
        layers_path=layers_path,
        embedding_path=_name_of(model, model.get_input_embeddings()),
        head_path=_name_of(model, model.get_output_embeddings()),
        tied=_is_tied(model),
    )


class _EmptyOnMeta(TorchFunctionMode):
    """Tensors that parameters are made of take no memory even for a moment: all experts of a layer are gigabytes."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """`torch.empty`, elsewhere."""
        del types
        kwargs = kwargs or {}
        return func(*args, **(kwargs | {"device": "meta"} if func is torch.empty else kwargs))


def find_layers(model: PreTrainedModel) -> str:
    """Name of the module list that holds the decoder layers.

    Raises:
        UnsupportedModelError: there is none.
    """
    count = text_config(model.config).num_hidden_layers
    decoder = model.get_decoder()
    for name, module in model.named_modules():
        inside = (
            module in decoder.modules() if text_config(model.config) is not model.config else True
        )
        if isinstance(module, nn.ModuleList) and len(module) == count and inside:
            return str(name)
    raise UnsupportedModelError(f"{type(model).__name__} has no list of {count} decoder layers")


def _is_tied(model: PreTrainedModel) -> bool:
    """Whether head and embedding are one matrix."""
    if text_config(model.config) is model.config:
        return bool(model.config.tie_word_embeddings)
    head = _name_of(model, model.get_output_embeddings())
    return f"{head}.weight" in model.all_tied_weights_keys


def _name_of(model: PreTrainedModel, wanted: nn.Module | None) -> str:
    for name, module in model.named_modules():
        if module is wanted:
            return str(name)
    raise UnsupportedModelError(f"{type(model).__name__} has no separate embedding or head")
