"""What a model predicts for windows of tokens, with bounded memory.

A model goes over windows layer by layer: a group of windows passes a decoder layer, the layer is dropped, and the next one
is loaded. What arrives at the head is all that a later comparison needs of a model; logits are made of it some positions at a
time, in float32, and never kept.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Protocol

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from transformers import PreTrainedModel

from spq_core.errors import UnsupportedModelError
from spq_core.evaluation.bounds import (
    GROUP_BYTES,
    LEAST_POSITIONS,
    LOGITS_AT_ONCE,
    WIDE_HEAD_BYTES,
)
from spq_core.evaluation.float_head import widen_head
from spq_core.evaluation.gguf import LanguageModel
from spq_core.formats.slicing import is_float, is_table
from spq_core.memory import return_freed_memory
from spq_core.models.blocked import BlockedModel
from spq_core.models.skeleton import find_layers
from spq_core.streaming.inputs import input_of
from spq_core.streaming.stream import begin_stream, widen_small_parts

FLOAT_BYTES = 4
DEFAULT_VOCABULARY = 1 << 16


AfterStep = Callable[[], None]
"""Called while states are computed, long before the first of them is there."""


def _nothing() -> None:
    """After a step that nobody waits for."""


class Predictions(Protocol):
    """Of one model for one window."""

    @property
    def step(self) -> int:
        """How many positions `logits` should be asked for at once."""

    def logits(self, some: slice) -> Float[Tensor, "t vocab"]:
        """In float32, for some positions."""


class Predictor(Protocol):
    """A model that is asked for its predictions."""

    def steps(self, windows: Int64[Tensor, "n length"]) -> int:
        """How often `after_step` will be called."""

    def predict(
        self, windows: Int64[Tensor, "n length"], after_step: AfterStep = _nothing
    ) -> Iterator[Predictions]:
        """Predictions for each window, in order; each is to be used before the next is asked for."""


@dataclass(frozen=True, slots=True)
class OfStates:
    """Predictions that are made of what arrives at the head, when they are asked for."""

    states: Float[Tensor, "length dim"]
    head: "StatePredictor"

    @property
    def step(self) -> int:
        """So many that their logits are bounded."""
        return max(LEAST_POSITIONS, LOGITS_AT_ONCE // self.head.vocabulary)

    @torch.no_grad()
    def logits(self, some: slice) -> Float[Tensor, "t vocab"]:
        """Through the head."""
        return self.head.logits(self.states[some])


@dataclass(frozen=True, slots=True)
class OfLogits:
    """Predictions of a model that gives no states."""

    all_logits: Float[Tensor, "length vocab"]

    @property
    def step(self) -> int:
        """So many that what is computed of them is bounded."""
        return max(LEAST_POSITIONS, LOGITS_AT_ONCE // self.all_logits.shape[-1])

    def logits(self, some: slice) -> Float[Tensor, "t vocab"]:
        """Some of them."""
        return self.all_logits[some].float()


class StatePredictor(ABC):
    """A model that gives what arrives at its head."""

    @property
    @abstractmethod
    def vocabulary(self) -> int:
        """Logits of a position."""

    def steps(self, windows: Int64[Tensor, "n length"]) -> int:
        """None where a window is a step."""
        del windows
        return 0

    @abstractmethod
    def states(
        self, windows: Int64[Tensor, "n length"], after_step: AfterStep = _nothing
    ) -> Iterator[Float[Tensor, "length dim"]]:
        """What arrives at the head, for each window, in float32."""

    @abstractmethod
    def logits(self, states: Float[Tensor, "t dim"]) -> Float[Tensor, "t vocab"]:
        """What the head makes of states."""

    @abstractmethod
    def forget_layers(self) -> None:
        """Only the head will be asked from now on."""

    def predict(
        self, windows: Int64[Tensor, "n length"], after_step: AfterStep = _nothing
    ) -> Iterator[Predictions]:
        """Predictions for each window."""
        for states in self.states(windows, after_step):
            yield OfStates(states, self)


class StreamedPredictor(StatePredictor):
    """A model that is never whole in memory."""

    def __init__(self, model: BlockedModel) -> None:
        self._model = model

    @cached_property
    def _rest(self) -> PreTrainedModel:
        """Norm and head; the embedding is only there to be called."""
        rest = self._model.rest()
        widen_small_parts(rest, self._model.skeleton)
        head = rest.get_output_embeddings()
        if is_float(head) and head.weight.numel() * FLOAT_BYTES <= WIDE_HEAD_BYTES:
            head.weight = nn.Parameter(head.weight.float(), requires_grad=False)
        widen_head(rest)
        return rest

    @property
    def vocabulary(self) -> int:
        """As configured."""
        return int(self._model.skeleton.text_config.vocab_size)

    def steps(self, windows: Int64[Tensor, "n length"]) -> int:
        """A layer for each group."""
        groups = -(-len(windows) // self._group_size(windows))
        return groups * self._model.skeleton.n_layers

    def _group_size(self, windows: Int64[Tensor, "n length"]) -> int:
        width = int(self._model.skeleton.text_config.hidden_size)
        return max(1, GROUP_BYTES // (windows.shape[1] * width * FLOAT_BYTES))

    @torch.no_grad()
    def states(
        self, windows: Int64[Tensor, "n length"], after_step: AfterStep = _nothing
    ) -> Iterator[Float[Tensor, "length dim"]]:
        """Group by group."""
        skeleton = self._model.skeleton
        for some in torch.split(windows, self._group_size(windows)):
            rest = self._model.rest()
            stream = begin_stream(skeleton, rest, _widened(rest, skeleton.embedding_path, some))
            for index in range(skeleton.n_layers):
                stream.advance(index, self._model.layer(index))
                return_freed_memory()
                after_step()
            for place in range(len(some)):
                yield stream.at_head(skeleton, rest, [place])[0].float()

    def forget_layers(self) -> None:
        """There are none in memory."""

    @torch.no_grad()
    def logits(self, states: Float[Tensor, "t dim"]) -> Float[Tensor, "t vocab"]:
        """In float32."""
        return _through_head(self._rest, states)


class WholePredictor(StatePredictor):
    """A loaded model of transformers."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        widen_head(model)

    @property
    def vocabulary(self) -> int:
        """As configured."""
        return int(getattr(self._model.config, "vocab_size", DEFAULT_VOCABULARY))

    @torch.no_grad()
    def states(
        self, windows: Int64[Tensor, "n length"], after_step: AfterStep = _nothing
    ) -> Iterator[Float[Tensor, "length dim"]]:
        """One after the other."""
        del after_step
        head = self._model.get_output_embeddings()
        for window in windows.to(self._model.device):
            yield input_of(head, partial(_run, self._model, window[None]))[0].float()

    def forget_layers(self) -> None:
        """Let go of their memory."""
        with suppress(UnsupportedModelError, AttributeError):
            self._model.set_submodule(find_layers(self._model), nn.ModuleList())

    @torch.no_grad()
    def logits(self, states: Float[Tensor, "t dim"]) -> Float[Tensor, "t vocab"]:
        """In float32."""
        with _without_layers(self._model):
            return _through_head(self._model, states)


@dataclass(frozen=True, slots=True)
class LogitsPredictor:
    """A model that only says its logits, as llama.cpp's do."""

    model: LanguageModel

    def steps(self, windows: Int64[Tensor, "n length"]) -> int:
        """None: a window is a step."""
        del windows
        return 0

    @torch.no_grad()
    def predict(
        self, windows: Int64[Tensor, "n length"], after_step: AfterStep = _nothing
    ) -> Iterator[Predictions]:
        """One window after the other."""
        del after_step
        for window in windows:
            yield OfLogits(_run(self.model, window[None].to(self.model.device)).logits[0])


def _run(model: Any, ids: Int64[Tensor, "1 length"]) -> Any:
    return model(input_ids=ids, use_cache=False)


def _through_head(model: PreTrainedModel, states: Float[Tensor, "t dim"]) -> Tensor:
    """The model's own way from its head's input to logits: some scale or bound what the head says."""
    head = model.get_output_embeddings()
    handle = head.register_forward_pre_hook(lambda _module, _arguments: (states[None],))
    ids = torch.zeros(1, len(states), dtype=torch.int64, device=states.device)
    try:
        logits: Tensor = _run(model, ids).logits[0]
    finally:
        handle.remove()
    return logits


@contextmanager
def _without_layers(model: PreTrainedModel) -> Iterator[None]:
    """What the layers would make of tokens that stand for nothing is not needed; so they are not run where they are found."""
    try:
        path = find_layers(model)
    except (UnsupportedModelError, AttributeError):
        yield
        return
    layers = model.get_submodule(path)
    model.set_submodule(path, nn.ModuleList())
    try:
        yield
    finally:
        model.set_submodule(path, layers)


def _widened(
    rest: PreTrainedModel, path: str, windows: Int64[Tensor, "n length"]
) -> Int64[Tensor, "n length"]:
    """Let the embedding give rows in float32; of a table only those that are looked up, under other ids."""
    embedding = rest.get_submodule(path)
    if is_table(embedding):
        used, places = torch.unique(windows, return_inverse=True)
        narrow = embedding.weight.dtype
        rows = embedding.weight[used].float()
        embedding.weight = nn.Parameter(rows, requires_grad=False)
        for factor in embedding.buffers():  # a model in that dtype has its scale rounded to it
            if factor.is_floating_point():
                factor.data = factor.to(narrow).to(factor.dtype)
        ids: Tensor = places.view_as(windows)
        return ids
    embedding.float()  # codes and their scales stay; what comes out of them follows
    return windows
