"""Gradients of a whole model with one decoder layer resident: forward once, then back.

This is gradient checkpointing at every layer, with the layers' weights read again as well. Only the
trained tensors, their gradients and the states between layers exist beside one layer.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol

import torch
from jaxtyping import Bool, Int64
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from spq_core.models.blocked import BlockedModel
from spq_core.models.skeleton import Skeleton
from spq_core.streaming.head import TOKENS, Head
from spq_core.streaming.inputs import input_of
from spq_core.streaming.stream import CalibrationStream, embed


class Batch(NamedTuple):
    """Tokens of one step."""

    rows: Int64[Tensor, "n length"]
    real: Bool[Tensor, "n length"]
    """False for pads, which must be on the right."""


class Trainables(Protocol):
    """The tensors that are trained; they outlive the blocks they are put into."""

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """By full name, in float32."""
        ...

    def attach(self, path: str, block: nn.Module) -> dict[str, nn.Parameter]:
        """Put them into a block, which must be differentiable then, and return those of it."""
        ...


class StepResult(NamedTuple):
    """One pass forward and back."""

    loss: float
    """Mean over tokens, in nats."""
    gradients: dict[str, Tensor]


def gradients_of(
    model: BlockedModel,
    trainables: Trainables,
    batch: Batch,
    teacher: tuple[Head, list[Tensor]] | None,
) -> StepResult:
    """Loss and gradients of one batch.

    Args:
        teacher: the source's head and what it receives for each row; the loss is then the KL
            divergence from its predictions. None: the loss is that of the text's next tokens.
    """
    skeleton = model.skeleton
    rest = model.rest()
    trained = trainables.attach("", rest)
    stream = embed(skeleton, rest, batch.rows)
    embedded = stream.hidden
    stream.hidden = [states.detach() for states in embedded]
    states: list[list[Tensor]] = []
    for index in range(skeleton.n_layers):
        states.append(list(stream.hidden))
        layer = model.layer(index)
        trainables.attach(skeleton.layer_path(index), layer)
        with _mixed(stream):
            stream.advance(index, layer)
    found = _Gradients({})
    loss, gradients = _through_head(skeleton, rest, stream, trained, batch, teacher, found)
    for index in reversed(range(skeleton.n_layers)):
        stream.hidden = states.pop()
        layer = model.layer(index)
        members = trainables.attach(skeleton.layer_path(index), layer)
        gradients = [
            found.back_through(
                partial(stream.through_layer, index, layer), stream, position, gradient, members
            )
            for position, gradient in enumerate(gradients)
        ]
    for output, gradient in zip(embedded, gradients, strict=True):
        if output.requires_grad:
            wanted = list(trained.values())
            found.add(trained, torch.autograd.grad(output, wanted, gradient, allow_unused=True))
    return StepResult(loss, found.sums)


@dataclass(frozen=True, slots=True)
class _Gradients:
    """Sums over the rows of a batch."""

    sums: dict[str, Tensor]

    def add(self, members: dict[str, nn.Parameter], gradients: tuple[Tensor | None, ...]) -> None:
        for name, gradient in zip(members, gradients, strict=True):
            if gradient is not None:
                self.sums[name] = self.sums[name] + gradient if name in self.sums else gradient

    def back_through(
        self,
        run: Callable[[Sequence[int]], Tensor],
        stream: CalibrationStream,
        position: int,
        gradient: Tensor,
        members: dict[str, nn.Parameter],
    ) -> Tensor:
        """Run one row through a layer again and return the gradient in front of it."""
        stream.hidden[position] = stream.hidden[position].detach().requires_grad_()
        with _mixed(stream):
            output = run([position])
        found = torch.autograd.grad(
            output, [stream.hidden[position], *members.values()], gradient, allow_unused=True
        )
        self.add(members, found[1:])
        before: Tensor = found[0]
        return before


def _through_head(
    skeleton: Skeleton,
    rest: PreTrainedModel,
    stream: CalibrationStream,
    trained: dict[str, nn.Parameter],
    batch: Batch,
    teacher: tuple[Head, list[Tensor]] | None,
    found: _Gradients,
) -> tuple[float, list[Tensor]]:
    """Loss, and its gradient at the last layer's output."""
    head = Head(rest, skeleton)
    counted = batch.real.clone()
    if teacher is None:
        counted = counted.roll(-1, dims=1)
        counted[:, -1] = False  # the last token has no next one
    total = max(1, int(counted.sum()))
    shared = {
        name: part for name, part in trained.items() if part is getattr(head.linear, "weight", None)
    }
    loss, gradients = 0.0, []
    for position in range(len(batch.rows)):
        stream.hidden[position] = stream.hidden[position].detach().requires_grad_()
        normed = input_of(head.linear, partial(stream.through_rest, skeleton, rest, [position]))
        at_head = torch.zeros_like(normed)
        for start in range(0, normed.shape[1], TOKENS):
            some = slice(start, min(start + TOKENS, normed.shape[1]))
            logits = head.logits(normed.detach()[0, some])
            target = _wanted(logits.values, some, batch.rows[position], teacher, position)
            kept = counted[position, some, None]
            part, error = _loss_and_error(logits.values, target, kept)
            loss += part / total
            error /= total
            at_head[0, some] = head.gradient(error, logits.slope)
            if shared:
                found.add(shared, (error.T @ normed.detach()[0, some],))
        wanted = [stream.hidden[position], *trained.values()]
        parts = torch.autograd.grad(normed, wanted, at_head, allow_unused=True)
        found.add(trained, parts[1:])
        gradients.append(parts[0])
    return loss, gradients


def _wanted(
    values: Tensor,
    some: slice,
    row: Tensor,
    teacher: tuple[Head, list[Tensor]] | None,
    position: int,
) -> Tensor:
    """The distribution each token's prediction should have."""
    if teacher is not None:
        head, states = teacher
        return head.logits(states[position][some]).values.softmax(dim=-1)
    following = row.roll(-1)[some].to(values.device)
    return functional.one_hot(following, values.shape[1]).to(values.dtype)


def _loss_and_error(values: Tensor, wanted: Tensor, kept: Tensor) -> tuple[float, Tensor]:
    """Σ KL(wanted ‖ predicted) over the tokens that count, and its gradient by the logits."""
    log_predicted = values.log_softmax(dim=-1)
    log_wanted = wanted.clamp(min=torch.finfo(wanted.dtype).tiny).log()
    kept = kept.to(values.device)
    divergence = (wanted * (log_wanted - log_predicted)).sum(dim=-1, keepdim=True)
    error = (log_predicted.exp() - wanted) * kept
    return float((divergence * kept).sum()), error


def _mixed(stream: CalibrationStream) -> torch.autocast:
    """bfloat16 products on a GPU; float32 on a CPU."""
    kind = stream.hidden[0].device.type
    return torch.autocast(kind, dtype=torch.bfloat16, enabled=kind == "cuda")
