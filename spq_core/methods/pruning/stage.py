"""The pruning stage: quiet layers lose more of their MLP neurons."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from spq_core.formats.slicing import bias_of, dense_linear, float_weight, linear_at
from spq_core.methods.pruning.compensation import compensate, score_neurons
from spq_core.methods.pruning.neurons import cut_mlp, rows_of, strongest_neurons
from spq_core.methods.pruning.ratios import layer_ratios
from spq_core.methods.pruning.settings import PruneSettings
from spq_core.methods.stage import StageContext, StageState
from spq_core.models.family import Family
from spq_core.report import ModuleReport
from spq_core.streaming.inputs import LayerInputs
from spq_core.streaming.moments import InputMoments

WEIGHTS = "weights."
"""Begins the names of output weights in a stage's state."""


def forget(_name: str, _kept: Tensor) -> None:
    """Nobody needs to know which rows a matrix keeps."""


@dataclass(slots=True)
class PruneStage:
    """Collects what ratios and scores depend on in the survey, then cuts."""

    settings: PruneSettings
    family: Family
    on_cut: Callable[[str, Tensor], None] = forget
    """Told about each matrix that loses rows, and which it keeps."""
    neurons: dict[str, int] = field(default_factory=dict)
    """With `max_ratio: auto` or `layer_ratios: loss`, how many neurons each layer keeps."""
    output_weights: dict[str, Tensor] = field(default_factory=dict)
    """Then also how much each output of the matrix behind the neurons counts."""
    multiple: int = 1
    """What the number of neurons that stay is a multiple of, where there are that many."""
    name: str = "prune"
    needs_calibration: bool = True
    scores: dict[str, Tensor] = field(default_factory=dict)
    """Per decoder layer, the mean absolute output of each neuron."""

    @property
    def _is_planned(self) -> bool:
        return self.settings.planned is not None

    @property
    def needs_survey(self) -> bool:
        """Whether a layer's ratio depends on the others."""
        if self._is_planned:
            return False
        return self.settings.layer_ratios == "activation" or self.settings.score == "activation"

    @property
    def needs_inputs(self) -> bool:
        """Whether scores or the update look at what the following matrix receives."""
        return self.settings.score != "activation" or self.settings.update != "none"

    def survey(self, path: str, block: nn.Module, run_samples: Callable[[], None]) -> None:
        """Average |output| of the scored matrix over samples and tokens (pads included)."""
        if not self._has_mlp(block):
            return
        means: list[Tensor] = []
        neurons = linear_at(block, self.family.mlp_out).in_features

        def note(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            outputs = output.detach()[..., -neurons:]  # the up projection, where both are fused
            means.append(outputs.abs().flatten(0, -2).mean(dim=0, dtype=torch.float32))

        handle = linear_at(block, self.family.scored).register_forward_hook(note)
        try:
            run_samples()
        finally:
            handle.remove()
        self.scores[path] = torch.stack(means).mean(dim=0)

    def apply(self, path: str, block: nn.Module, inputs: LayerInputs | None) -> list[ModuleReport]:
        """Cut the block's MLP to its strongest neurons, and let the matrix behind them adapt."""
        if not self._has_mlp(block):
            return self._left_whole(path, block)
        scores = self._scores(path, block, inputs)
        ratio = self._ratio(path, scores.numel())
        kept = strongest_neurons(scores, ratio, self.multiple)
        applied = kept.numel() < scores.numel()
        if applied:
            self._cut(path, block, kept, inputs)
        figures: dict[str, float | int | str] = {
            "ratio": ratio,
            "kept": kept.numel(),
            "neurons": scores.numel(),
        }
        if path in self.scores:
            figures["mean_activation"] = float(self.scores[path].mean())
        return [
            ModuleReport(
                layer=f"{path}.{name}",
                stage=self.name,
                applied=applied,
                reason="" if applied else "the layer's ratio removes no neuron",
                figures=figures,
            )
            for name in self.family.mlp
        ]

    def _left_whole(self, path: str, block: nn.Module) -> list[ModuleReport]:
        """A layer of experts says why nothing goes."""
        present = {name for name, _ in block.named_modules()}
        experts = next((name for name in self.family.experts if name in present), None)
        if experts is None:
            return []
        reason = (
            "the layer's neurons are those of its experts, which are removed whole or not at all"
        )
        return [
            ModuleReport(layer=f"{path}.{experts}", stage=self.name, applied=False, reason=reason)
        ]

    def state(self) -> StageState:
        """The scores so far, the numbers a plan chose, and what outputs count."""
        weights = {f"{WEIGHTS}{name}": part for name, part in self.output_weights.items()}
        return StageState(self.neurons, self.scores | weights)

    def restore(self, state: StageState) -> None:
        """Take up all of it."""
        for name, part in state.tensors.items():
            weights = name.startswith(WEIGHTS)
            (self.output_weights if weights else self.scores)[name.removeprefix(WEIGHTS)] = part
        self.neurons.update(state.values)

    def _ratio(self, path: str, neurons: int) -> float:
        if self._is_planned:
            # half a neuron on top, so that rounding down gives the number back
            return 1 - min(1.0, (self.neurons[path] + 0.5) / neurons)
        if self.settings.layer_ratios == "uniform":
            return float(self.settings.max_ratio)
        return self.ratios()[path]

    def _scores(self, path: str, block: nn.Module, inputs: LayerInputs | None) -> Tensor:
        if self.settings.score == "activation":
            return self.scores[path]
        weight = float_weight(linear_at(block, self.family.mlp_out))
        weights = self.output_weights.get(f"{path}.{self.family.mlp_out}")
        return score_neurons(self.settings.score, weight, self._behind(inputs), weights)

    def _cut(self, path: str, block: nn.Module, kept: Tensor, inputs: LayerInputs | None) -> None:
        following = linear_at(block, self.family.mlp_out)
        updated = None
        if self.settings.update != "none":
            updated = compensate(
                self.settings.update, float_weight(following), bias_of(following),
                kept, self._behind(inputs),
            )  # fmt: skip
        cut_mlp(block, self.family, kept)
        if updated is not None:
            block.set_submodule(self.family.mlp_out, dense_linear(*updated))
        rows = rows_of(kept, following.in_features, self.family)
        for name in self.family.mlp_in:
            self.on_cut(f"{path}.{name}", rows)
        if inputs is not None:
            inputs.cut(self.family.mlp_out)

    def _behind(self, inputs: LayerInputs | None) -> InputMoments:
        """Moments of what the matrix behind the neurons receives."""
        if inputs is None:
            raise RuntimeError("this score or update needs calibrated inputs")
        return inputs.moments(self.family.mlp_out)

    def ratios(self) -> dict[str, float]:
        """Pruning ratio per decoder layer; the survey must be complete."""
        means = [float(scores.mean()) for scores in self.scores.values()]
        chosen = layer_ratios(means, float(self.settings.max_ratio), self.settings.min_ratio)
        return dict(zip(self.scores, chosen, strict=True))

    def _has_mlp(self, block: nn.Module) -> bool:
        return bool(self.family.mlp_out) and any(
            name == self.family.mlp_out for name, _ in block.named_modules()
        )


def make_stage(settings: PruneSettings, context: StageContext) -> PruneStage:
    """With the numbers of neurons that were planned."""
    family, plan = context.skeleton.family, context.plan
    multiple = context.profile.width_multiple
    weights = plan.weights_of((family.mlp_out,))
    neurons = dict(plan.structure.neurons)
    return PruneStage(settings, family, context.cuts.cut, neurons, weights, multiple)
