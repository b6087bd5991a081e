"""Calibration samples on their way through a model that is never whole in memory."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from transformers import PreTrainedModel

from spq_core.errors import UnsupportedModelError
from spq_core.formats.slicing import is_table
from spq_core.models.blocked import BlockedModel
from spq_core.models.skeleton import Skeleton
from spq_core.streaming.inputs import input_of
from spq_core.streaming.recorder import Recorder, embedded

TOKENS_AT_ONCE = 2048
"""Samples go through a layer together up to this many tokens: enough for a processor's products to be
at their fastest, few enough for the widest layer's activations."""
MASK_AXES = 4
LayerArguments = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and named ones, behind the states."""


@dataclass(slots=True)
class CalibrationStream:
    """Hidden states in front of the next decoder layer, one batch of one sample each.

    The one mutable value of a run: `advance` puts a layer's outputs in the states' place.
    """

    hidden: list[Float[Tensor, "1 length dim"]]
    arguments: list[LayerArguments]
    """Per decoder layer, what the model calls it with behind the states (masks, rotations)."""
    attributes: dict[str, Any]
    """Plain attributes of the first layer, for whoever stands in its place."""
    own_arguments: dict[int, list[LayerArguments]] = field(default_factory=dict)
    """`arguments` for samples whose layers receive more of a text than its states (embeddings for each layer)."""
    returned: int = 0
    """How many things the model takes of what a layer returns, the states first; 0 if it returns nothing but those."""
    one_by_one: bool = False
    """Whether layers receive something that is made for a number of samples (ALiBi's biases)."""
    in_place: bool = False
    """Whether outputs are written over the states, which nobody else holds. Else each batch leaves its outputs between what it needed for
    a moment, and freed memory in pieces: with a hundred windows that came to gigabytes."""

    @torch.no_grad()
    def advance(
        self,
        index: int,
        layer: nn.Module,
        positions: range | None = None,
        forward: Callable[[Sequence[int]], Tensor] | None = None,
    ) -> None:
        """Push samples through decoder layer `index`; all of them, if not said which.

        Args:
            forward: stands for `through_layer`.
        """
        forward = forward or partial(self.through_layer, index, layer)
        for batch in self.batches(positions):
            outputs = forward(batch)
            for position, output in zip(batch, torch.split(outputs, 1), strict=True):
                if self.in_place:
                    self.hidden[position].copy_(output)
                else:
                    self.hidden[position] = output

    def batches(self, positions: range | None = None) -> list[range]:
        """Cut positions into batches of `TOKENS_AT_ONCE`; those of all samples, if not said which."""
        positions = range(len(self.hidden)) if positions is None else positions
        if not positions:
            return []
        size = max(1, TOKENS_AT_ONCE // self.hidden[positions[0]].shape[1])
        if self.one_by_one or self.own_arguments:
            size = 1
        return [positions[start : start + size] for start in range(0, len(positions), size)]

    def through_layer(
        self, index: int, layer: nn.Module, positions: Sequence[int]
    ) -> Float[Tensor, "batch length dim"]:
        """Outputs of decoder layer `index` for some samples; their states stay as they are."""
        positional, named = self.own_arguments.get(positions[0], self.arguments)[index]
        batch = len(positions)
        named = {name: _for_batch(value, batch) for name, value in named.items()}
        output: Any = layer(
            self._states(positions), *(_for_batch(value, batch) for value in positional), **named
        )
        states: Tensor = output[0] if isinstance(output, tuple) else output
        return states

    def _states(self, positions: Sequence[int]) -> Tensor:
        states = [self.hidden[position] for position in positions]
        return states[0] if len(states) == 1 else torch.cat(states)

    def through_rest(
        self, skeleton: Skeleton, rest: PreTrainedModel, positions: Sequence[int]
    ) -> Float[Tensor, "batch length vocabulary"]:
        """Logits for some samples whose states have passed all layers.

        `rest` is the model without layers; it is given one that answers with those states.
        """
        states = self._states(positions)
        replay = Recorder(self.attributes, answer=states)
        replay.returned = self.returned
        rest.set_submodule(skeleton.layers_path, nn.ModuleList([replay]))
        embedding = rest.get_submodule(skeleton.embedding_path)
        widening = embedding.register_forward_hook(lambda _module, _inputs, output: output.float())
        ids = torch.zeros(states.shape[:2], dtype=torch.int64, device=states.device)
        try:
            logits: Tensor = rest(input_ids=ids, use_cache=False).logits
        finally:
            widening.remove()
            rest.set_submodule(skeleton.layers_path, nn.ModuleList())
        return logits

    @torch.no_grad()
    def at_head(
        self, skeleton: Skeleton, rest: PreTrainedModel, positions: Sequence[int]
    ) -> list[Float[Tensor, "length dim"]]:
        """What the head receives for some samples whose states have passed all layers."""
        head = rest.get_submodule(skeleton.head_path)
        return [
            input_of(head, partial(self.through_rest, skeleton, rest, [position]))[0]
            for position in positions
        ]


def _for_batch(value: Any, batch: int) -> Any:
    """Masks that were noted of one sample, for several: not every attention broadcasts them."""
    is_mask = isinstance(value, Tensor) and value.ndim == MASK_AXES and value.shape[0] == 1
    return value.expand(batch, -1, -1, -1) if is_mask else value


@torch.no_grad()
def begin_stream(
    skeleton: Skeleton, rest: PreTrainedModel, windows: Int64[Tensor, "n length"]
) -> CalibrationStream:
    """Embed the windows and learn how the model calls its layers, without any layer's weights.

    The embedding is read in its stored dtype; everything after it is float32.

    Args:
        rest: the model without its layers; it is changed.
    """
    stream = embed(skeleton, rest, windows)
    stream.in_place = True
    return stream


def embed(
    skeleton: Skeleton, rest: PreTrainedModel, windows: Int64[Tensor, "n length"]
) -> CalibrationStream:
    """The same with gradients, for whoever trains the embedding."""
    recorders = [
        Recorder(_simple_attributes(skeleton, index)) for index in range(skeleton.n_layers)
    ]
    rest.set_submodule(skeleton.layers_path, nn.ModuleList(recorders))
    widen_small_parts(rest, skeleton)
    embedding = rest.get_submodule(skeleton.embedding_path)
    widening = embedding.register_forward_hook(lambda _module, _inputs, output: output.float())
    hidden: list[Tensor] = []
    rows = windows.to(next(embedding.parameters()).device)
    try:
        hidden.append(embedded(rest, recorders, rows[:1]))
        _require_called(recorders)
        arguments = [recorder.arguments for recorder in recorders]
        own: dict[int, list[LayerArguments]] = {}
        for at in range(1, len(rows)):
            hidden.append(embedded(rest, recorders, rows[at : at + 1]))
            found = [recorder.arguments for recorder in recorders]
            if not _are_same(arguments, found):
                own[at] = _sharing(arguments, found)
        one_by_one = len(rows) > 1 and not (
            own or _serves_several(rest, recorders, rows[:2], arguments)
        )
    finally:
        widening.remove()
        rest.set_submodule(skeleton.layers_path, nn.ModuleList())
    attributes = _simple_attributes(skeleton, 0)
    return CalibrationStream(
        hidden, arguments, attributes, own, returned=recorders[0].returned, one_by_one=one_by_one
    )


def _require_called(recorders: Sequence[Recorder]) -> None:
    """All layers must take part where there is only text.

    Raises:
        UnsupportedModelError: some do not.
    """
    left_out = [str(index) for index, one in enumerate(recorders) if not one.is_called]
    if left_out:
        raise UnsupportedModelError(
            f"decoder layers {', '.join(left_out[:8])} take no part where there is only text (cross attention to images, "
            "say), so nothing can be measured of them"
        )


def _are_same(some: Sequence[LayerArguments], others: Sequence[LayerArguments]) -> bool:
    """Whether layers receive the same of two samples, but for their states."""
    return all(
        one.shape == other.shape and torch.equal(one, other)
        for one, other in zip(_tensors(some), _tensors(others), strict=True)
    )


def _sharing(some: Any, others: Any) -> Any:
    """The others, with the tensors of the first where they are equal: masks are large."""
    if isinstance(others, Tensor):
        same = isinstance(some, Tensor) and some.shape == others.shape and torch.equal(some, others)
        return some if same else others
    if isinstance(others, dict):
        return {name: _sharing(some[name], value) for name, value in others.items()}
    if type(others) in (list, tuple):
        return type(others)(_sharing(one, other) for one, other in zip(some, others, strict=True))
    return others


def _serves_several(
    rest: PreTrainedModel,
    recorders: Sequence[Recorder],
    ids: Int64[Tensor, "2 length"],
    arguments: Sequence[LayerArguments],
) -> bool:
    """Whether what one sample's layers receive serves several: as it is, or as a mask for each."""
    hidden = embedded(rest, recorders, ids)
    found = [recorder.arguments for recorder in recorders]
    return len(hidden) == len(ids) and all(
        one.shape == several.shape or _for_batch(one, len(ids)).shape == several.shape
        for one, several in zip(_tensors(arguments), _tensors(found), strict=True)
    )


def _tensors(value: Any) -> list[Tensor]:
    """All of them, wherever they are in tuples, lists and dictionaries."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [tensor for part in value for tensor in _tensors(part)]
    return []


@torch.no_grad()
def final_states(
    model: BlockedModel, rows: Int64[Tensor, "n length"]
) -> list[Float[Tensor, "length dim"]]:
    """What the model's head receives for each row."""
    skeleton, rest = model.skeleton, model.rest()
    stream = begin_stream(skeleton, rest, rows)
    for index in range(skeleton.n_layers):
        stream.advance(index, model.layer(index))
    return stream.at_head(skeleton, rest, range(len(rows)))


def widen_small_parts(rest: PreTrainedModel, skeleton: Skeleton) -> None:
    """Make everything but embedding and head float32, in place; scales of codes are theirs."""
    tables = [rest.get_submodule(path) for path in (skeleton.embedding_path, skeleton.head_path)]
    for name, module in rest.named_modules():
        if not is_table(module) and module not in tables and not skeleton.is_foreign(name):
            for parameter in module.parameters(recurse=False):
                if parameter.is_floating_point():
                    parameter.data = parameter.data.float()


def _simple_attributes(skeleton: Skeleton, index: int) -> dict[str, Any]:
    layer = skeleton.model.get_submodule(skeleton.layer_path(index))
    return {
        name: value
        for name, value in vars(layer).items()
        if not name.startswith("_") and name != "training" and isinstance(value, str | int | bool)
    }
