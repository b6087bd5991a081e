"""What the pipeline asks of a stage."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

from spq_core.report import ModuleReport
from spq_core.streaming.inputs import LayerInputs


class StageState(NamedTuple):
    """What a stage knows between two blocks, in a form that can be stored without pickle."""

    values: dict[str, Any]
    """JSON values."""
    tensors: dict[str, Tensor]


class Stage(Protocol):
    """One step of a recipe, applied block by block.

    A block is a decoder layer, or the rest of the model (embedding, final norm, head). A stage
    whose choice for one block depends on all of them has `needs_survey`; the pipeline then shows
    it every block, in order and with all earlier stages applied, before it changes the first.
    """

    @property
    def name(self) -> str:
        """The stage's type in the recipe."""
        ...

    @property
    def needs_survey(self) -> bool:
        """Whether `survey` must see every block before `apply` changes one."""
        ...

    @property
    def needs_calibration(self) -> bool:
        """Whether `survey` or `apply` needs calibration samples."""
        ...

    @property
    def needs_inputs(self) -> bool:
        """Whether `apply` asks what the block's matrices receive."""
        ...

    def survey(self, path: str, block: nn.Module, run_samples: Callable[[], None]) -> None:
        """Look at a block; `run_samples` sends the calibration samples through it, once."""
        ...

    def apply(self, path: str, block: nn.Module, inputs: LayerInputs | None) -> list[ModuleReport]:
        """Change the block in place and say what was done to each matrix.

        Args:
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
