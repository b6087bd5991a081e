"""A recipe's stages cut into walks over all blocks."""

from collections.abc import Sequence
from dataclasses import dataclass

from spq_core.methods.stage import LearningStage, Stage, SurveyingStage


@dataclass(frozen=True, slots=True)
class Pass:
    """One walk over all blocks."""

    apply: tuple[Stage, ...]
    survey: SurveyingStage | None
    """Looks at the blocks after `apply`."""
    is_last: bool = False
    """Whether it writes the blocks, for they are finished."""

    @property
    def learns(self) -> bool:
        """Whether a stage leaves what it has learned in every block."""
        return any(isinstance(stage, LearningStage) for stage in self.apply)

    @property
    def needs_inputs(self) -> bool:
        """Whether a stage asks what matrices receive."""
        return any(stage.needs_inputs for stage in self.apply)

    @property
    def needs_samples(self) -> bool:
        """Whether calibration samples travel with the pass."""
        surveyed = self.survey is not None and self.survey.needs_calibration
        return surveyed or self.needs_inputs


def plan_passes(stages: Sequence[Stage]) -> tuple[Pass, ...]:
    """Cut stages into passes: one that must see all blocks first ends the pass before it."""
    passes: list[Pass] = []
    pending: list[Stage] = []
    for stage in stages:
        if isinstance(stage, SurveyingStage) and stage.needs_survey:
            passes.append(Pass(tuple(pending), stage))
            pending = []
        elif isinstance(stage, LearningStage) and pending:
            passes.append(Pass(tuple(pending), None))
            pending = []
        pending.append(stage)
    return (*passes, Pass(tuple(pending), None, is_last=True))
