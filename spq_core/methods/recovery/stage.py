"""The recovery stage: trains on the whole model between two passes, then leaves the result in blocks."""

from dataclasses import dataclass, field

from torch import nn

from spq_core.errors import RecipeError
from spq_core.formats.slicing import is_table
from spq_core.methods.recovery.settings import RecoverSettings
from spq_core.methods.recovery.trainables import AdapterParameters
from spq_core.methods.stage import StageContext, StageState
from spq_core.methods.training.loop import PlainSteps, Training
from spq_core.models.blocked import BlockedModel
from spq_core.report import ModuleReport
from spq_core.streaming.inputs import LayerInputs
from spq_core.streaming.run_state import StateFolder


@dataclass(slots=True)
class RecoverStage:
    """Trains adapters (`learn`), then merges them or puts them beside the matrices (`apply`)."""

    settings: RecoverSettings
    trainables: AdapterParameters
    training: Training
    name: str = "recover"
    needs_inputs: bool = field(default=False, init=False)

    def learn(self, student: BlockedModel, states: StateFolder) -> None:
        """Train for the recipe's number of steps.

        Raises:
            NumericalError: the loss is not finite.
            RecipeError: the embedding is to be trained and is quantized.
        """
        if len(self.training.losses) == self.settings.steps:
            return
        self._create(student)
        self.training.run(student, states)

    def apply(self, path: str, block: nn.Module, inputs: LayerInputs | None) -> list[ModuleReport]:
        """Leave what was trained in a block."""
        del inputs
        changed = self.trainables.merge_or_attach(path, block)
        losses = self.training.losses
        figures: dict[str, float | int | str] = {
            "rank": self.settings.rank,
            "steps": self.settings.steps,
            "first_loss": losses[0],
            "last_loss": losses[-1],
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
        return StageState({"losses": self.training.losses}, parameters)

    def restore(self, state: StageState) -> None:
        """Take up what was trained."""
        self.training.losses[:] = state.values["losses"]
        self.training.fill(state.tensors)

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


def make_stage(settings: RecoverSettings, context: StageContext) -> RecoverStage:
    """With rows of text, and the source to learn from.

    Raises:
        RecipeError: there is no text.
    """
    trainables = AdapterParameters(settings)
    return RecoverStage(
        settings,
        trainables,
        Training(
            settings, context.rows_of(settings.type), context.teacher, context.progress, trainables,
            PlainSteps(settings.learning_rate),
        ),
    )  # fmt: skip
