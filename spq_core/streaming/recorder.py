"""Stands in the place of decoder layers while a model is called: what it calls them with, and what it takes of them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from jaxtyping import Int64
from torch import Tensor, nn
from transformers import PreTrainedModel

from spq_core.errors import UnsupportedModelError
from spq_core.machine import machine_failure

_HANDED_ON = object()
"""What else a layer returns. A model may take it, and must not need it."""
MOST_RETURNED = 2


class Recorder(nn.Module):
    """Stands where a decoder layer was: notes its arguments and passes the states on."""

    def __init__(self, attributes: dict[str, Any], answer: Tensor | None = None) -> None:
        super().__init__()
        self.arguments: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})
        self.answer, self.returned, self.is_called = answer, 0, False
        # Some models choose a layer's mask by an attribute of the layer itself.
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(
        self, hidden_states: Tensor, *positional: Any, **named: Any
    ) -> Tensor | tuple[Any, ...]:
        if any(value is _HANDED_ON for value in (*positional, *named.values())):
            raise UnsupportedModelError(
                "decoder layers hand on more than hidden states to the next (indices, routes), which are not followed here"
            )
        self.arguments, self.is_called = (positional, named), True
        output = hidden_states if self.answer is None else self.answer
        return (output, *[_HANDED_ON] * (self.returned - 1)) if self.returned else output


def embedded(
    rest: PreTrainedModel, recorders: Sequence[Recorder], ids: Int64[Tensor, "n length"]
) -> Tensor:
    """What the first layer receives. How many things the model takes of what a layer returns is tried."""
    first: Exception | None = None
    with _inputs_of(recorders[0]) as seen:
        for returned in range(recorders[0].returned, MOST_RETURNED + 1):
            for recorder in recorders:
                recorder.returned = returned
            trouble = _trouble(rest, ids, recorders[0])
            if trouble is None:
                return seen[-1]
            first = first or trouble
    raise first or RuntimeError("the model takes nothing that a layer may return")


def _trouble(
    rest: PreTrainedModel, ids: Int64[Tensor, "n length"], recorder: Recorder
) -> Exception | None:
    """What keeps states from coming out as they should: the first of a tensor is one without its batch."""
    try:
        output = _without_head(rest, recorder)(input_ids=ids, use_cache=False)[0]
    except (RuntimeError, ValueError, IndexError, TypeError, AttributeError) as error:
        if machine_failure(error) is not None:
            raise
        return error
    if output.shape[: ids.ndim] == ids.shape:
        return None
    return RuntimeError(f"states of {tuple(ids.shape)} tokens came out as {tuple(output.shape)}")


def _without_head(rest: PreTrainedModel, recorder: Recorder) -> nn.Module:
    """What comes before the head; what holds the layers where transformers' name for it is that of no part."""
    base: nn.Module = rest.base_model
    if base is not rest:
        return base
    modules: list[nn.Module] = list(rest.modules())
    return next(
        one for one in modules if any(recorder in part.children() for part in one.children())
    )


@contextmanager
def _inputs_of(module: nn.Module) -> Iterator[list[Tensor]]:
    """Collect the first positional argument of each call."""
    seen: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    try:
        yield seen
    finally:
        handle.remove()
