"""Calibration samples on their way through a model that is never whole in memory."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from spq_core.modeling.blocks import load_rest
from spq_core.modeling.checkpoint import Checkpoint
from spq_core.modeling.skeleton import Skeleton


@dataclass(slots=True)
class CalibrationStream:
    """Hidden states in front of the next decoder layer, one batch of one sample each.

    The one mutable value of a run: `advance` replaces the states by a layer's outputs.
    """

    hidden: list[Float[Tensor, "1 length dim"]]
    arguments: list[dict[str, Any]]
    """Per decoder layer, the keyword arguments the model calls it with (masks, rotations)."""

    @torch.no_grad()
    def advance(self, index: int, layer: nn.Module) -> None:
        """Push every sample through decoder layer `index`."""
        for position, states in enumerate(self.hidden):
            self.hidden[position] = layer(states, **self.arguments[index])


class _Recorder(nn.Module):
    """Stands where a decoder layer was: notes its arguments and passes the states on."""

    def __init__(self, attributes: dict[str, Any]) -> None:
        super().__init__()
        self.arguments: dict[str, Any] = {}
        # Some models choose a layer's mask by an attribute of the layer itself.
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, hidden_states: Tensor, **arguments: Any) -> Tensor:
        self.arguments = arguments
        return hidden_states


@torch.no_grad()
def begin_stream(
    skeleton: Skeleton, checkpoint: Checkpoint, windows: Int64[Tensor, "n length"]
) -> CalibrationStream:
    """Embed the windows and learn how the model calls its layers, without any layer's weights.

    The embedding is read in its stored dtype; everything after it is float32.
    """
    rest = load_rest(skeleton, checkpoint)
    recorders = [
        _Recorder(_simple_attributes(skeleton, index)) for index in range(skeleton.n_layers)
    ]
    rest.set_submodule(skeleton.layers_path, nn.ModuleList(recorders))
    for module in rest.modules():
        if not isinstance(module, nn.Embedding):
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.float()
    embedding = rest.get_submodule(skeleton.embedding_path)
    embedding.register_forward_hook(lambda _module, _inputs, output: output.float())
    hidden: list[Tensor] = []
    for window in windows:
        with _inputs_of(recorders[0]) as seen:
            rest.base_model(input_ids=window[None], use_cache=False)
        hidden.extend(seen)
    return CalibrationStream(hidden, [recorder.arguments for recorder in recorders])


@contextmanager
def _inputs_of(module: nn.Module) -> Iterator[list[Tensor]]:
    """Collect the first positional argument of each call."""
    seen: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    try:
        yield seen
    finally:
        handle.remove()


def _simple_attributes(skeleton: Skeleton, index: int) -> dict[str, Any]:
    layer = skeleton.model.get_submodule(skeleton.layer_path(index))
    return {
        name: value
        for name, value in vars(layer).items()
        if not name.startswith("_") and name != "training" and isinstance(value, str | int | bool)
    }
