"""The spectrum stage: learns an order of all directions on the whole model, then cuts by it."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from spq_core.formats.low_rank.linear import LowRankLinear
from spq_core.formats.slicing import bias_of, dense_linear, float_weight, linear_at
from spq_core.methods.spectra.directions import Directions, chosen, directions_of, with_adapter
from spq_core.methods.spectra.settings import SpectrumSettings
from spq_core.methods.spectra.sizes import best_first
from spq_core.methods.spectra.steps import AcipSteps, SocoSteps
from spq_core.methods.spectra.trainables import MASK, Adapter, DirectionParameters
from spq_core.methods.stage import StageContext, StageState
from spq_core.methods.training.loop import PlainSteps, StepRules, Training
from spq_core.methods.training.walk import Batch, gradients_of
from spq_core.models.blocked import BlockedModel
from spq_core.report import ModuleReport
from spq_core.streaming.inputs import LayerInputs
from spq_core.streaming.run_state import StateFolder

SCORES = "scores/"
WHOLE = "a pair would not be smaller"
CHANGED = f"{WHOLE}; one matrix, with what was trained merged into it"


@dataclass(slots=True)
class SpectrumStage:
    """Wiring only; what is learned is in `steps`, what is cut in `sizes`."""

    settings: SpectrumSettings
    trained: DirectionParameters
    training: Training
    dtype: torch.dtype
    """Of what is stored."""
    name: str = "spectrum"
    needs_inputs: bool = field(default=False, init=False)
    side: dict[str, Tensor] = field(default_factory=dict, init=False)
    """What is to be stored beside the layer that was changed last."""
    ranks: dict[str, int] = field(default_factory=dict, init=False)

    def learn(self, student: BlockedModel, states: StateFolder) -> None:
        """Find all directions, then train.

        Raises:
            NumericalError: the loss is not finite.
        """
        if len(self.training.losses) == self.settings.steps:
            return
        self.trained.store = states
        skeleton = student.skeleton
        for index in range(skeleton.n_layers):
            self.trained.create(skeleton.layer_path(index), student.layer(index))
        self.trained.settle_fixed()
        if isinstance(self.training.rules, AcipSteps | SocoSteps):
            self.training.rules.begin(self._first_gradients(student))
        self.training.run(student, states)
        if self.settings.method == "acip":
            self.trained.break_ties()
        for index in range(skeleton.n_layers):
            states.inner(f"directions-{skeleton.layer_path(index)}").remove()

    def apply(self, path: str, block: nn.Module, inputs: LayerInputs | None) -> list[ModuleReport]:
        """Cut a layer's matrices to what the size leaves of them."""
        del inputs
        self.side = {}
        if not path:
            return []
        if not self.ranks:
            self.ranks.update(self.trained.ranks())
        return [self._cut(path, block, name) for name in self.trained.present(block)]

    def beside(self) -> dict[str, Tensor]:
        """All directions of the layer that was changed last, best first, for `spq resize`."""
        return self.side

    def state(self) -> StageState:
        """What was learned."""
        tensors = {name: part.data for name, part in self.trained.parameters.items()}
        tensors |= {SCORES + name: part for name, part in self.trained.scores.items()}
        shapes = {name: list(shape) for name, shape in self.trained.shapes.items()}
        return StageState({"losses": self.training.losses, "shapes": shapes}, tensors)

    def restore(self, state: StageState) -> None:
        """Take up what was learned."""
        self.training.losses[:] = state.values["losses"]
        self.trained.shapes.update(
            {name: (shape[0], shape[1]) for name, shape in state.values["shapes"].items()}
        )
        self.training.fill(
            {name: part for name, part in state.tensors.items() if not name.startswith(SCORES)}
        )
        self.trained.scores |= {
            name.removeprefix(SCORES): part
            for name, part in state.tensors.items()
            if name.startswith(SCORES)
        }

    def _first_gradients(self, student: BlockedModel) -> dict[str, Tensor]:
        """Of the text's loss, by the masks: one step that changes nothing."""
        rows, real = self.training.samples.batch(0, self.settings.batch)
        found = gradients_of(student, self.trained, Batch(rows, real), None).gradients
        return {name: part for name, part in found.items() if name.endswith(MASK)}

    def _cut(self, path: str, block: nn.Module, name: str) -> ModuleReport:
        full, layer = f"{path}.{name}", linear_at(block, name)
        weight, scores = float_weight(layer), self.trained.scores[full]
        directions, rank = directions_of(weight), max(1, self.ranks[full])
        order = torch.from_numpy(best_first(scores.cpu().numpy())).to(weight.device)
        factors = scores if self.settings.method == "soco" else None
        adapter = self._adapter(full, weight.device)
        is_pair = self.trained.factored_one(full).is_pair(rank)
        whole = _whole(weight, directions, factors, adapter)
        if is_pair:
            pair = with_adapter(chosen(directions, order[:rank], factors), adapter)
            block.set_submodule(name, pair_of(pair, bias_of(layer)))
        elif whole is not weight:
            block.set_submodule(name, dense_linear(whole, bias_of(layer)))
        if self.settings.any_size:
            self._keep(name, whole, chosen(directions, order), scores[order], adapter)
        return ModuleReport(
            layer=full,
            stage=self.name,
            applied=is_pair,
            reason="" if is_pair else WHOLE if whole is weight else CHANGED,
            figures=self._figures(order[:rank] if is_pair else order),
        )

    def _figures(self, kept: Tensor) -> dict[str, float | int | str]:
        losses = self.training.losses
        return {
            "rank": len(kept),
            "not_largest": int((kept >= len(kept)).sum()),
            "steps": self.settings.steps,
            "first_loss": losses[0],
            "last_loss": losses[-1],
        }

    def _keep(
        self, name: str, whole: Tensor, pair: tuple[Tensor, Tensor], scores: Tensor, adapter: Adapter | None
    ) -> None:  # fmt: skip
        up, down = pair
        parts = {"weight": whole, "up": up, "down": down}
        if adapter is not None:
            parts |= {"adapter_up": adapter[0], "adapter_down": adapter[1]}
        self.side |= {f"{name}.{part}": one.to(self.dtype) for part, one in parts.items()}
        self.side[f"{name}.scores"] = scores.float()

    def _adapter(self, full: str, device: torch.device) -> Adapter | None:
        """As columns and rows of a pair: up, down."""
        found = self.trained.adapter(full, device)
        if found is None:
            return None
        down, up = (part.data.to(device) for part in found)
        return self.trained.scale * up, down


def pair_of(pair: tuple[Tensor, Tensor], bias: Tensor | None) -> LowRankLinear:
    """The layer of a pair, up and down."""
    up, down = (part.contiguous() for part in pair)
    return LowRankLinear(dense_linear(down, None), dense_linear(up, bias))


def _whole(
    weight: Tensor, directions: Directions, factors: Tensor | None, adapter: Adapter | None
) -> Tensor:
    """What a matrix is that stays one: rescaled as it was trained, and its adapter merged."""
    if factors is not None:
        weight = (directions.up * factors) @ directions.down
    return weight if adapter is None else weight + adapter[0] @ adapter[1]


def make_stage(settings: SpectrumSettings, context: StageContext) -> SpectrumStage:
    """With rows of text, and the source to learn from.

    Raises:
        RecipeError: there is no text.
    """
    trained = DirectionParameters(settings, context.skeleton.family)
    rules: dict[str, StepRules] = {
        "acip": AcipSteps(settings, trained),
        "soco": SocoSteps(settings, trained),
        "largest": PlainSteps(settings.learning_rate),
    }
    training = Training(
        settings, context.rows_of(settings.type), context.teacher, context.progress, trained,
        rules[settings.method],
    )  # fmt: skip
    return SpectrumStage(settings, trained, training, context.dtype)
