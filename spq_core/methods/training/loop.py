"""Steps of an optimizer over a whole model, one decoder layer in memory, from which a killed run goes on."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from spq_core.data.training_rows import TrainingRows
from spq_core.errors import NumericalError
from spq_core.methods.training.settings import TrainedSettings
from spq_core.methods.training.walk import Batch, Trainables, gradients_of
from spq_core.models.blocked import BlockedModel
from spq_core.progress import PhaseKind, Progress, phase
from spq_core.streaming.head import Head
from spq_core.streaming.run_state import StateFolder
from spq_core.streaming.stream import final_states

SAVE_EVERY = 10
"""Steps between stored states, which a killed run goes on from."""
MOMENTS = ("exp_avg", "exp_avg_sq")
BETAS = (0.9, 0.999)


class StepRules(Protocol):
    """What happens around a step besides following the gradient; the base does nothing."""

    def rate(self, name: str) -> float:
        """The learning rate of a tensor, at its highest."""
        ...

    def before(self, step: int) -> None:
        """With gradients in place, before they are followed."""
        ...

    def after(self, step: int) -> None:
        """With the step done."""
        ...

    def state(self) -> dict[str, Tensor]:
        """What it knows, by names without a slash."""
        ...

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take that up."""
        ...


@dataclass(frozen=True, slots=True)
class PlainSteps:
    """One rate for all, and nothing besides."""

    learning_rate: float

    def rate(self, name: str) -> float:
        """The recipe's."""
        del name
        return self.learning_rate

    def before(self, step: int) -> None:
        """Nothing."""

    def after(self, step: int) -> None:
        """Nothing."""

    def state(self) -> dict[str, Tensor]:
        """Nothing."""
        return {}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Nothing."""


@dataclass(slots=True)
class Training:
    """One training."""

    settings: TrainedSettings
    samples: TrainingRows
    teacher: BlockedModel
    """The source."""
    progress: Progress
    trainables: Trainables
    rules: StepRules
    losses: list[float] = field(default_factory=list)
    """Of each step so far."""

    def run(self, student: BlockedModel, states: StateFolder) -> None:
        """Train for the recipe's number of steps. Every trained tensor exists already.

        Raises:
            NumericalError: the loss is not finite.
        """
        steps = self.settings.steps
        optimizer = torch.optim.AdamW(
            self._groups(), betas=BETAS, weight_decay=self.settings.weight_decay
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

    def fill(self, tensors: Mapping[str, Tensor]) -> None:
        """Give trained tensors these values."""
        for name, part in tensors.items():
            if name in self.trainables.parameters:
                own = self.trainables.parameters[name]
                own.data = part.to(own.device)
            else:
                self.trainables.parameters[name] = nn.Parameter(part)

    def _groups(self) -> list[dict[str, Any]]:
        """Tensors by their learning rate."""
        rates: dict[float, list[nn.Parameter]] = {}
        for name, parameter in self.trainables.parameters.items():
            rates.setdefault(self.rules.rate(name), []).append(parameter)
        return [{"params": members, "lr": rate, "highest": rate} for rate, members in rates.items()]

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
        self.rules.before(step)
        for group in optimizer.param_groups:
            group["lr"] = group["highest"] * self._share(step)
        optimizer.step()
        self.rules.after(step)
        return found.loss

    def _share(self, step: int) -> float:
        return 1 - step / self.settings.steps if self.settings.decay_to_zero else 1.0

    def _save(self, optimizer: torch.optim.Optimizer, states: StateFolder) -> None:
        tensors = {name: part.data for name, part in self.trainables.parameters.items()}
        for name, parameter in self.trainables.parameters.items():
            kept = optimizer.state.get(parameter, {})
            tensors |= {f"{key}/{name}": kept[key] for key in MOMENTS if key in kept}
        tensors |= {f"rules/{name}": part for name, part in self.rules.state().items()}
        states.save(len(self.losses), {"losses": self.losses}, tensors)

    def _take_up(self, optimizer: torch.optim.Optimizer, states: StateFolder) -> None:
        found = states.load()
        if found is None:
            return
        self.losses[:] = found.values["losses"]
        self.fill({name: part for name, part in found.tensors.items() if "/" not in name})
        own = "rules/"
        self.rules.restore(
            {
                name.removeprefix(own): part
                for name, part in found.tensors.items()
                if name.startswith(own)
            }
        )
        for name, parameter in self.trainables.parameters.items():
            moments: dict[str, Any] = {
                key: found.tensors[f"{key}/{name}"].to(parameter.device)
                for key in MOMENTS
                if f"{key}/{name}" in found.tensors
            }
            if moments:
                moments["step"] = torch.tensor(float(len(self.losses)))
                optimizer.state[parameter] = moments
