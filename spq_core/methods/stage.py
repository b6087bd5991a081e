"""What the walk over a model's blocks asks of a stage, and what a stage is made from."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from spq_core.data.training_rows import TrainingRows
from spq_core.errors import RecipeError
from spq_core.formats.profiles.profile import Profile
from spq_core.models.blocked import BlockedModel
from spq_core.models.skeleton import Skeleton
from spq_core.planning.plan import Plan
from spq_core.progress import Progress
from spq_core.report import ModuleReport
from spq_core.streaming.inputs import LayerInputs
from spq_core.streaming.run_state import StateFolder


class StageState(NamedTuple):
    """What a stage knows between two blocks, in a form that can be stored without pickle."""

    values: dict[str, Any]
    """JSON values."""
    tensors: dict[str, Tensor]


class Stage(Protocol):
    """One step of a recipe, applied block by block.

    A block is a decoder layer, or the rest of the model (embedding, final norm, head).
    """

    @property
    def name(self) -> str:
        """The stage's type in the recipe."""
        ...

    @property
    def needs_inputs(self) -> bool:
        """Whether `apply` asks what the block's matrices receive."""
        ...

    def apply(self, path: str, block: nn.Module, inputs: LayerInputs | None) -> list[ModuleReport]:
        """Change the block in place and say what was done to each matrix.

        Args:
            path: of a decoder layer; empty for the rest of the model.
            inputs: what the block's matrices receive, in its present state and behind all blocks
                as they are after compression; None if no stage needs calibration.
        """
        ...

    def state(self) -> StageState:
        """What the stage has learned so far."""
        ...

    def restore(self, state: StageState) -> None:
        """Take up the work where `state` left it."""
        ...


class Stateless:
    """A stage that knows nothing between two blocks."""

    def state(self) -> StageState:
        """Nothing."""
        return StageState({}, {})

    def restore(self, state: StageState) -> None:
        """Nothing to take up."""


@runtime_checkable
class SurveyingStage(Protocol):
    """A stage whose choice for one block may depend on all of them.

    With `needs_survey` it is shown every block, in order and with all earlier stages applied, before it
    changes the first.
    """

    @property
    def needs_survey(self) -> bool:
        """Whether it has to see all blocks."""
        ...

    @property
    def needs_calibration(self) -> bool:
        """Whether `survey` needs calibration samples."""
        ...

    def survey(self, path: str, block: nn.Module, run_samples: Callable[[], None]) -> None:
        """Look at a block; `run_samples` sends the calibration samples through it, once."""
        ...


@runtime_checkable
class LearningStage(Protocol):
    """A stage that works on the whole model, as the stages before it left it, before it is applied."""

    def learn(self, student: BlockedModel, states: StateFolder) -> None:
        """Do that work; `states` is a place to note how far it came."""
        ...


@runtime_checkable
class StageWithFiles(Protocol):
    """A stage that stores something of each block in a file of its own, beside the weights."""

    def beside(self) -> dict[str, Tensor]:
        """That of the block it changed last; empty if there is nothing."""
        ...


class Cuts:
    """Tells stages that keep something per row which rows of a matrix an earlier stage kept."""

    def __init__(self) -> None:
        """Begin with nobody listening."""
        self._listeners: list[Callable[[str, Tensor], None]] = []

    def tell(self, listener: Callable[[str, Tensor], None]) -> None:
        """Have `listener` called with (matrix, indices of the rows that stay)."""
        self._listeners.append(listener)

    def cut(self, name: str, kept: Tensor) -> None:
        """A matrix keeps these rows."""
        for listener in self._listeners:
            listener(name, kept)


@dataclass(frozen=True, slots=True, kw_only=True)
class StageContext:
    """What is known when the stages of a run are made."""

    skeleton: Skeleton
    dtype: torch.dtype
    """Of what stays in floating point."""
    plan: Plan
    profile: Profile
    """Of the artifact."""
    cuts: Cuts = field(default_factory=Cuts)
    training_rows: Mapping[str, TrainingRows] = field(default_factory=dict)
    """By type of stage, for those that learn; empty without text."""
    source: BlockedModel | None = None
    """The model before all stages, for one that learns from it."""
    progress: Progress

    @property
    def teacher(self) -> BlockedModel:
        """The model before all stages.

        Raises:
            RecipeError: there is none, as nothing was expected to learn from it.
        """
        if self.source is None:
            raise RecipeError("a recipe with a stage that trains needs its source")
        return self.source

    def rows_of(self, stage: str) -> TrainingRows:
        """What a stage trains on.

        Raises:
            RecipeError: there is no text.
        """
        if stage not in self.training_rows:
            raise RecipeError(f"a recipe with a {stage} stage needs text; none was given")
        return self.training_rows[stage]
