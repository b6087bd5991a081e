"""The recovery stage: trains on the whole model between two passes, then leaves the result in blocks."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from spq_core.data.training_rows import TrainingRows
from spq_core.errors import NumericalError, RecipeError
from spq_core.formats.slicing import is_table
from spq_core.methods.recovery.settings import RecoverSettings
from spq_core.methods.recovery.trainables import AdapterParameters
from spq_core.methods.recovery.walk import Batch, gradients_of
from spq_core.methods.stage import StageContext, StageState
from spq_core.models.blocked import BlockedModel
from spq_core.progress import PhaseKind, Progress, phase
from spq_core.report import ModuleReport
from spq_core.streaming.head import Head
from spq_core.streaming.inputs import LayerInputs
from spq_core.streaming.run_state import StateFolder
from spq_core.streaming.stream import final_states

SAVE_EVERY = 10
"""Steps between stored states, which a killed run goes on from."""
MOMENTS = ("exp_avg", "exp_avg_sq")
BETAS = (0.9, 0.999)


@dataclass(slots=True)
class RecoverStage:
    """Trains adapters (`learn`), then merges them or puts them beside the matrices (`apply`)."""

    settings: RecoverSettings
    samples: TrainingRows
    teacher: BlockedModel
    """The source."""
    progress: Progress
    name: str = "recover"
    needs_inputs: bool = False
    trainables: AdapterParameters = field(init=False)
    losses: list[float] = field(default_factory=list)
    """Of each step so far."""

    def __post_init__(self) -> None:
        self.trainables = AdapterParameters(self.settings)

    def learn(self, student: BlockedModel, states: StateFolder) -> None:
        """Train for the recipe's number of steps.

        Raises:
            NumericalError: the loss is not finite.
            RecipeError: the embedding is to be trained and is quantized.
        """
        steps = self.settings.steps
        if len(self.losses) == steps:
            return
        self._create(student)
        optimizer = torch.optim.AdamW(
            self.trainables.parameters.values(),
            lr=self.settings.learning_rate,
            betas=BETAS,
            weight_decay=self.settings.weight_decay,
        )
        self._take_up(optimizer, states)
        self.progress.begin(phase(PhaseKind.RECOVERY), steps - len(self.losses), "steps")
        for step in range(len(self.losses), steps):
            loss = self._step(student, optimizer, step)
            self.losses.append(loss)
            if (step + 1) % SAVE_EVERY == 0 or step + 1 == steps:
                self._save(optimizer, states)
                self.progress.record("recovery", {"step": step + 1, "loss": loss})
            self.progress.advance(f"loss {loss:.4f}")

    def apply(self, path: str, block: nn.Module, inputs: LayerInputs | None) -> list[ModuleReport]:
        """Leave what was trained in a block."""
        del inputs
        changed = self.trainables.merge_or_attach(path, block)
        figures: dict[str, float | int | str] = {
            "rank": self.settings.rank,
            "steps": self.settings.steps,
            "first_loss": self.losses[0],
            "last_loss": self.losses[-1],
        }
        return [
            ModuleReport(
                layer=f"{path}.{name}".strip("."), stage=self.name, applied=True, figures=figures
            )
            for name in changed
        ]

    def state(self) -> StageState:
        """What was trained."""
        parameters = {name: part.data for name, part in self.trainables.parameters.items()}
        return StageState({"losses": self.losses}, parameters)

    def restore(self, state: StageState) -> None:
        """Take up what was trained."""
        self.losses = list(state.values["losses"])
        self._fill(state.tensors)

    def _create(self, student: BlockedModel) -> None:
        """Make every trained tensor, so that the optimizer knows them all."""
        skeleton = student.skeleton
        rest = student.rest()
        if "embedding" in self.settings.trains and not is_table(
            rest.get_submodule(skeleton.embedding_path)
        ):
            raise RecipeError("recover cannot train an embedding that is quantized before it")
        self.trainables.attach("", rest)
        for index in range(skeleton.n_layers):
            self.trainables.attach(skeleton.layer_path(index), student.layer(index))

    def _step(self, student: BlockedModel, optimizer: torch.optim.Optimizer, step: int) -> float:
        device = next(iter(self.trainables.parameters.values())).device
        rows, real = (part.to(device) for part in self.samples.batch(step, self.settings.batch))
        taught = None
        if self.settings.objective == "logits":
            head = Head(self.teacher.rest(), self.teacher.skeleton)
            taught = (head, final_states(self.teacher, rows))
        found = gradients_of(student, self.trainables, Batch(rows, real), taught)
        if not torch.isfinite(torch.tensor(found.loss)):
            raise NumericalError("recovery", f"the loss of step {step + 1}")
        for name, parameter in self.trainables.parameters.items():
            parameter.grad = found.gradients.get(name)
        for group in optimizer.param_groups:
            group["lr"] = self.settings.learning_rate * self._share(step)
        optimizer.step()
        return found.loss

    def _share(self, step: int) -> float:
        return 1 - step / self.settings.steps if self.settings.decay_to_zero else 1.0

    def _save(self, optimizer: torch.optim.Optimizer, states: StateFolder) -> None:
        tensors = {name: part.data for name, part in self.trainables.parameters.items()}
        for name, parameter in self.trainables.parameters.items():
            kept = optimizer.state.get(parameter, {})
            tensors |= {f"{key}/{name}": kept[key] for key in MOMENTS if key in kept}
        states.save(len(self.losses), {"losses": self.losses}, tensors)

    def _take_up(self, optimizer: torch.optim.Optimizer, states: StateFolder) -> None:
        found = states.load()
        if found is None:
            return
        self.losses = list(found.values["losses"])
        self._fill({name: part for name, part in found.tensors.items() if "/" not in name})
        for name, parameter in self.trainables.parameters.items():
            moments: dict[str, Any] = {
                key: found.tensors[f"{key}/{name}"].to(parameter.device)
                for key in MOMENTS
                if f"{key}/{name}" in found.tensors
            }
            if moments:
                moments["step"] = torch.tensor(float(len(self.losses)))
                optimizer.state[parameter] = moments

    def _fill(self, tensors: Mapping[str, Tensor]) -> None:
        for name, part in tensors.items():
            if name in self.trainables.parameters:
                own = self.trainables.parameters[name]
                own.data = part.to(own.device)
            else:
                self.trainables.parameters[name] = nn.Parameter(part)


def make_stage(settings: RecoverSettings, context: StageContext) -> RecoverStage:
    """With rows of text, and the source to learn from.

    Raises:
        RecipeError: there is no text.
    """
    if context.training_rows is None or context.source is None:
        raise RecipeError("a recipe with a recover stage needs text; none was given")
    return RecoverStage(settings, context.training_rows, context.source, context.progress)
