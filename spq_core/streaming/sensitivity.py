"""How much each output of each matrix counts: one pass forward, one back, a layer at a time.

Let g be the gradient of the log-likelihood of a token drawn from the model's own prediction with
respect to a matrix's output y. To second order the KL divergence that an output error Δy causes
is ½ E[(g · Δy)²] (the Fisher information; Martens 2014, arXiv:1412.1193). With the outputs' and
inputs' statistics taken as independent (K-FAC, arXiv:1503.05671) and the rows of a matrix one by
one, an error ΔW costs
    ½ Σ_i E[g_i²] · ΔW_i E[x xᵀ] ΔW_iᵀ   nats per token.

Hidden states wait on disk between the two passes, so one decoder layer is resident at a time.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float, Int64
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from spq_core.errors import NumericalError
from spq_core.models.blocks import load_layer, load_rest
from spq_core.models.checkpoint import Checkpoint
from spq_core.models.family import Family, Group, Step
from spq_core.models.finite import all_finite
from spq_core.models.skeleton import Skeleton
from spq_core.progress import PhaseKind, Progress, phase
from spq_core.streaming.draw import draw_tokens
from spq_core.streaming.experts import weighed_experts
from spq_core.streaming.head import TOKENS, Head
from spq_core.streaming.inputs import input_of
from spq_core.streaming.moments import InputMoments, RunningMoments
from spq_core.streaming.order import steps_of
from spq_core.streaming.stream import CalibrationStream, begin_stream, widen_small_parts


@dataclass(frozen=True, slots=True)
class MatrixStatistics:
    """What one matrix receives, and how much each of its outputs counts."""

    inputs: InputMoments
    output_weights: Float[Tensor, " out"]
    """E[g_i²]."""


@dataclass(frozen=True, slots=True)
class EmbeddingStatistics:
    """The same for embedding and head."""

    head_inputs: Float[Tensor, "dim dim"]
    """E[h hᵀ] of what the head receives."""
    probabilities: Float[Tensor, " vocabulary"]
    """Mean predicted probability of each token, which weights its row of the head: the KL of an
    error δ of logit v is ½ p_v (1 − p_v) δ²."""
    gradients: Float[Tensor, "dim dim"]
    """E[g gᵀ] at the embedding's output."""


@dataclass(frozen=True, slots=True)
class LayerStatistics:
    """One decoder layer."""

    matrices: dict[str, MatrixStatistics]
    """By name within the layer."""
    influence: dict[str, float]
    """By matrix, 1 − mean cosine between a token's states before and after the attention or MLP that it is in. What comes before
    the MLP is taken to be the layer's output less the MLP's."""


Visit = Callable[[int, nn.Module, LayerStatistics], None]
"""(layer index, layer, its statistics)."""


def measure_sensitivity(
    skeleton: Skeleton,
    checkpoint: Checkpoint,
    windows: Int64[Tensor, "n length"],
    scratch: Path,
    progress: Progress,
    visit: Visit,
) -> EmbeddingStatistics:
    """Show each decoder layer with its statistics, last layer first.

    Args:
        scratch: folder for hidden states; n · length · dim · 4 bytes per layer.
    """
    progress.begin(phase(PhaseKind.SENSITIVITY), 2 * skeleton.n_layers, "layers")
    stream = begin_stream(skeleton, load_rest(skeleton, checkpoint), windows)
    scratch.mkdir(parents=True, exist_ok=True)
    for index in range(skeleton.n_layers):
        save_file({"hidden": torch.cat(stream.hidden)}, _states_file(scratch, index))
        stream.advance(index, load_layer(skeleton, checkpoint, index))
        progress.advance(f"forward, layer {index}")
    statistics, gradients = _through_head(skeleton, checkpoint, stream)
    for index in reversed(range(skeleton.n_layers)):
        states = load_file(_states_file(scratch, index), checkpoint.device)["hidden"]
        _states_file(scratch, index).unlink()
        layer = load_layer(skeleton, checkpoint, index)
        found, gradients = _back_through(skeleton, stream, index, layer, states, gradients)
        visit(index, layer, found)
        del found, layer  # before the next ones come
        progress.advance(f"back, layer {index}")
    rows = torch.cat(gradients).flatten(0, -2)
    embedding_scale = float(
        getattr(skeleton.model.get_submodule(skeleton.embedding_path), "scalar_embed_scale", 1.0)
    )
    return EmbeddingStatistics(
        head_inputs=statistics.head_inputs,
        probabilities=statistics.probabilities,
        gradients=rows.T @ rows / rows.shape[0] * embedding_scale**2,
    )


def _states_file(scratch: Path, index: int) -> Path:
    return scratch / f"states-{index}.safetensors"


def _through_head(
    skeleton: Skeleton, checkpoint: Checkpoint, stream: CalibrationStream
) -> tuple[EmbeddingStatistics, list[Tensor]]:
    """Statistics of the head, and gradients of the sampled log-likelihood at the last layer."""
    rest = load_rest(skeleton, checkpoint)
    widen_small_parts(rest, skeleton)
    head = Head(rest, skeleton)
    device = stream.hidden[0].device
    generator = torch.Generator(device).manual_seed(0)
    width = head.linear.in_features
    probabilities = torch.zeros(head.vocabulary, dtype=torch.float64, device=device)
    second_moment = torch.zeros(width, width, device=device)
    gradients: list[Tensor] = []
    tokens = 0
    for position, states in enumerate(stream.hidden):
        stream.hidden[position] = states.detach().requires_grad_()
        normed = input_of(head.linear, partial(stream.through_rest, skeleton, rest, [position]))
        if not all_finite(normed):
            raise NumericalError("calibration", f"the input of {skeleton.head_path}")
        at_head = torch.empty_like(normed)
        for start in range(0, normed.shape[1], TOKENS):
            some = slice(start, start + TOKENS)
            predicted, at_head[0, some] = _drawn_gradient(head, normed.detach()[0, some], generator)
            probabilities += predicted.sum(dim=0)
        (gradient,) = torch.autograd.grad(normed, stream.hidden[position], at_head)
        gradients.append(gradient)
        stream.hidden[position] = states
        rows = normed.detach()[0].float()
        second_moment.addmm_(rows.T, rows)
        tokens += rows.shape[0]
    return (
        EmbeddingStatistics(
            second_moment / tokens, (probabilities / tokens).float(), second_moment
        ),
        gradients,
    )


@torch.no_grad()
def _drawn_gradient(
    head: Head, states: Float[Tensor, "tokens dim"], generator: torch.Generator
) -> tuple[Float[Tensor, "tokens vocabulary"], Float[Tensor, "tokens dim"]]:
    """Predicted probabilities, and the gradient of −log p of a drawn token at the head's input."""
    logits = head.logits(states)
    predicted = logits.values.softmax(dim=-1)
    drawn = draw_tokens(predicted, generator)
    error = predicted.scatter_add(1, drawn, torch.full_like(drawn, -1.0, dtype=torch.float32))
    return predicted, head.gradient(error, logits.slope)


def _back_through(
    skeleton: Skeleton,
    stream: CalibrationStream,
    index: int,
    layer: nn.Module,
    states: Tensor,
    gradients: list[Tensor],
) -> tuple[LayerStatistics, list[Tensor]]:
    """Run a layer again, this time with gradients, and pass them on."""
    family = skeleton.family
    again = partial(_run_all, stream, index, layer, states.detach())
    steps = steps_of(family, layer, partial(again, stream.batches()[:1]))
    sums: dict[Group, RunningMoments] = {}
    squares: dict[str, Tensor] = {}
    turned = _Turned()
    passed: list[Tensor] = []
    handles = _watching(layer, family, steps, sums, squares, turned)
    for batch in stream.batches():
        some = states[batch.start : batch.stop].requires_grad_()
        stream.hidden[batch.start : batch.stop] = torch.split(some, 1)
        output = stream.through_layer(index, layer, batch)
        turned.add(some.detach(), output.detach())
        gradient = torch.cat(gradients[batch.start : batch.stop])
        passed += torch.split(torch.autograd.grad(output, some, gradient)[0], 1)
    for handle in handles:
        handle.remove()
    found: dict[str, MatrixStatistics] = {}
    for step in steps:
        if len(step) > 1:
            tokens, run = states.shape[:2].numel(), partial(again, stream.batches())
            of_experts = weighed_experts(layer, step, sums, squares, tokens, run)
            found |= {name: MatrixStatistics(*one) for name, one in of_experts.items()}
        else:
            moments = sums[step[0]].moments()
            found |= {
                name: MatrixStatistics(moments, squares[name] / moments.tokens) for name in step[0]
            }
    attention, mlp = turned.influence()
    influence = {name: attention if name in family.attention else mlp for name in found}
    return LayerStatistics(found, influence), passed


def _watching(
    layer: nn.Module,
    family: Family,
    steps: tuple[Step, ...],
    sums: dict[Group, RunningMoments],
    squares: dict[str, Tensor],
    turned: "_Turned",
) -> list[RemovableHandle]:
    """Hooks that collect what matrices receive, how much their outputs count, and what the MLP makes of states."""
    handles = []
    for group in (group for step in steps for group in step):
        first = layer.get_submodule(group[0])
        handles.append(first.register_forward_pre_hook(_collector(sums, group)))
        handles += [
            layer.get_submodule(name).register_forward_hook(_squarer(squares, name))
            for name in group
        ]
    present = {name for name, _ in layer.named_modules() if name}
    turning = next((name for name in (family.mlp_out, *family.experts) if name in present), None)
    if turning is not None:
        handles.append(layer.get_submodule(turning).register_forward_hook(turned.keep))
    return handles


@torch.no_grad()
def _run_all(
    stream: CalibrationStream, index: int, layer: nn.Module, states: Tensor, batches: list[range]
) -> None:
    """Send samples through a layer once more."""
    for batch in batches:
        stream.hidden[batch.start : batch.stop] = torch.split(states[batch.start : batch.stop], 1)
        stream.through_layer(index, layer, batch)


@dataclass(slots=True)
class _Turned:
    """By how much a layer's two halves turn the states of tokens."""

    by_mlp: Tensor = field(default_factory=lambda: torch.empty(0))
    cosines: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def keep(self, _module: nn.Module, _arguments: object, output: Tensor) -> None:
        self.by_mlp = output.detach()

    def add(self, before: Tensor, after: Tensor) -> None:
        between = (
            after - self.by_mlp.view_as(after) if self.by_mlp.numel() == after.numel() else before
        )
        pairs = ((before, between), (between, after))
        attention, mlp = (functional.cosine_similarity(*pair, dim=-1).flatten() for pair in pairs)
        self.cosines.append((attention, mlp))

    def influence(self) -> tuple[float, float]:
        """Of attention and MLP."""
        attention, mlp = zip(*self.cosines, strict=True)
        return 1 - float(torch.cat(attention).mean()), 1 - float(torch.cat(mlp).mean())


def _collector(
    sums: dict[Group, RunningMoments], group: Group
) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def collect(_module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        received = arguments[0].detach()
        if group not in sums:
            sums[group] = RunningMoments(received.shape[-1], received.device)
        sums[group].add(received)

    return collect


def _squarer(squares: dict[str, Tensor], name: str) -> Callable[[nn.Module, object, Tensor], None]:
    """Has the gradient of an output squared when it comes: by a hook of the tensor, which may be added to in place afterwards."""

    def square(gradient: Tensor) -> None:
        total = gradient.detach().flatten(0, -2).square().sum(dim=0)
        squares[name] = squares[name] + total if name in squares else total

    def watch(_module: nn.Module, _arguments: object, output: Tensor) -> None:
        output.register_hook(square)  # type: ignore[no-untyped-call]

    return watch
