"""What the pipeline asks of a stage."""

from collections.abc import Callable
from typing import Protocol

from torch import nn

from spq_core.calibration.inputs import LayerInputs
from spq_core.report import ModuleReport


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
