"""What happens around a step while a spectrum is learned: penalties, and what becomes of scores.

The papers' constants are for ten thousand steps and more, or were not published. Here masks begin at 1 and a penalty begins at the
tenth percentile of the gradients of the text's loss and grows each step; so a hundred steps go through all sizes. (Towards the source's
predictions there is no gradient yet: the model begins as its source.)
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from spq_core.errors import NumericalError
from spq_core.methods.spectra.masks import next_scores
from spq_core.methods.spectra.settings import SpectrumSettings
from spq_core.methods.spectra.sizes import Factored
from spq_core.methods.spectra.trainables import MASK, DirectionParameters

FIRST_QUANTILE = 0.1
HALF = 0.5
"""Factors below it are as good as gone."""


@dataclass(slots=True)
class _Steps:
    """What both methods share."""

    settings: SpectrumSettings
    trained: DirectionParameters
    penalty: float = 0.0

    def rate(self, name: str) -> float:
        """Masks have a rate of their own."""
        return self.settings.mask_rate if name.endswith(MASK) else self.settings.learning_rate

    def share_open(self) -> float:
        """Parameters of what is open, over those of whole matrices."""
        counts = {name: int(self._is_open(mask).sum()) for name, mask in self.trained.masks.items()}
        shapes = self.trained.shapes
        extra = self.settings.adapter_rank
        matrices = {name: Factored(torch.empty(0).numpy(), *shapes[name], extra) for name in counts}
        kept = sum(one.parameters(counts[name]) for name, one in matrices.items())
        return kept / sum(one.whole for one in matrices.values())

    def _is_open(self, mask: Tensor) -> Tensor:
        raise NotImplementedError

    def is_last_part(self, step: int) -> bool:
        """Whether a step is among those in which things settle."""
        return step >= round((1 - self.settings.settle) * self.settings.steps)

    def begin(self, gradients: Mapping[str, Tensor]) -> None:
        """Set the penalty by gradients of the masks."""
        sizes = torch.cat([part.abs() for part in gradients.values()])
        sizes = sizes[sizes > 0].sort().values  # directions of zeros have none
        if not len(sizes):
            raise NumericalError("recovery", "the gradients of all masks, which are zero")
        self.penalty = float(sizes[int(FIRST_QUANTILE * len(sizes))])


@dataclass(slots=True)
class AcipSteps(_Steps):
    """Loss + penalty · Σ relu(mask), the penalty rising until few enough masks are open; then adapters alone (ACIP, section 3)."""

    stands: bool = False
    """Whether masks are final."""

    def before(self, step: int) -> None:
        """Add the penalty's gradient, or leave masks alone."""
        self.stands = self.stands or self.is_last_part(step)
        for mask in self.trained.masks.values():
            if self.stands:
                mask.grad = None
            else:
                mask.grad = _gradient(mask) + self.penalty * (mask.data > 0)

    def after(self, step: int) -> None:
        """Follow which masks closed."""
        del step
        if self.stands:
            return
        for name, mask in self.trained.masks.items():
            self.trained.scores[name] = next_scores(self.trained.scores[name], mask.data)
        self.penalty *= self.settings.penalty_growth
        self.stands = self.share_open() <= self.settings.reach

    def state(self) -> dict[str, Tensor]:
        """The penalty, whether masks are final, and the order so far."""
        now = torch.tensor([self.penalty, float(self.stands)], dtype=torch.float64)
        return {"now": now} | self.trained.scores

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take them up."""
        self.penalty, self.stands = float(state["now"][0]), bool(state["now"][1])
        self.trained.scores |= {name: part for name, part in state.items() if name != "now"}

    def _is_open(self, mask: Tensor) -> Tensor:
        return mask.data > 0


@dataclass(slots=True)
class SocoSteps(_Steps):
    """Three phases (SoCo, section 3): shrink to the size; hold it, while some return; drive factors apart.

    What the phases add to the loss is our reading: penalty · Σ factor while too many are open, which holds the size in the second
    phase, too. In the last one, penalty · Σ factor of those below a half, and penalty / 2 · Σ (factor − what it was)² of the others.
    """

    anchors: dict[str, Tensor] = field(default_factory=dict)
    """Factors when the last phase began."""

    def before(self, step: int) -> None:
        """Add the phase's gradient."""
        masks = self.trained.masks
        if self.is_last_part(step):
            if not self.anchors:
                self.anchors = {name: mask.data.clone() for name, mask in masks.items()}
            for name, mask in masks.items():
                away = mask.data - self.anchors[name]
                pull = torch.where(self._is_open(mask), away, 1.0)
                mask.grad = _gradient(mask) + self.penalty * pull
        elif self.share_open() > self.settings.keep:
            for mask in masks.values():
                mask.grad = _gradient(mask) + self.penalty
            self.penalty *= self.settings.penalty_growth

    def after(self, step: int) -> None:
        """Factors are not negative, and are what directions are ordered by."""
        del step
        for name, mask in self.trained.masks.items():
            mask.data.clamp_(min=0.0)
            self.trained.scores[name] = mask.data.clone()

    def state(self) -> dict[str, Tensor]:
        """The penalty, and where the last phase began."""
        return {"now": torch.tensor([self.penalty], dtype=torch.float64)} | self.anchors

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take them up."""
        self.penalty = float(state["now"][0])
        self.anchors = {name: part for name, part in state.items() if name != "now"}
        self.trained.scores |= {
            name: mask.data.clone() for name, mask in self.trained.masks.items()
        }

    def _is_open(self, mask: Tensor) -> Tensor:
        return mask.data > HALF


def _gradient(mask: torch.nn.Parameter) -> Tensor:
    return torch.zeros_like(mask.data) if mask.grad is None else mask.grad
