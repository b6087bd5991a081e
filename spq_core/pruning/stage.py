"""The pruning stage: quiet layers lose more of their MLP neurons."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from spq_core.families.family import Family
from spq_core.layers.slicing import linear_at
from spq_core.pruning.neurons import cut_mlp, strongest_neurons
from spq_core.pruning.ratios import layer_ratios
from spq_core.recipe import PruneStage as PruneSettings
from spq_core.report import ModuleReport


@dataclass(slots=True)
class PruneStage:
    """Collects a score per neuron in the survey, then cuts."""

    settings: PruneSettings
    family: Family
    name: str = "prune"
    needs_survey: bool = True
    needs_calibration: bool = True
    scores: dict[str, Tensor] = field(default_factory=dict)
    """Per decoder layer, the mean absolute output of each neuron."""

    def survey(self, path: str, block: nn.Module, run_samples: Callable[[], None]) -> None:
        """Average |output| of the scored matrix over samples and tokens (pads included)."""
        if not self._has_mlp(block):
            return
        means: list[Tensor] = []

        def note(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            means.append(output.detach().abs().flatten(0, -2).mean(dim=0, dtype=torch.float32))

        handle = linear_at(block, self.family.scored).register_forward_hook(note)
        try:
            run_samples()
        finally:
            handle.remove()
        self.scores[path] = torch.stack(means).mean(dim=0)

    def apply(self, path: str, block: nn.Module) -> list[ModuleReport]:
        """Cut the block's MLP to its strongest neurons."""
        if not self._has_mlp(block):
            return []
        ratio = self.ratios()[path]
        scores = self.scores[path]
        kept = strongest_neurons(scores, ratio)
        applied = kept.numel() < scores.numel()
        if applied:
            cut_mlp(block, self.family, kept)
        figures: dict[str, float | int | str] = {
            "ratio": ratio,
            "kept": kept.numel(),
            "neurons": scores.numel(),
            "mean_activation": float(scores.mean()),
        }
        return [
            ModuleReport(
                layer=f"{path}.{name}",
                stage=self.name,
                applied=applied,
                reason="" if applied else "the layer's ratio removes no neuron",
                figures=figures,
            )
            for name in (*self.family.mlp_in, self.family.mlp_out)
        ]

    def ratios(self) -> dict[str, float]:
        """Pruning ratio per decoder layer; the survey must be complete."""
        means = [float(scores.mean()) for scores in self.scores.values()]
        chosen = layer_ratios(means, self.settings.max_ratio, self.settings.min_ratio)
        return dict(zip(self.scores, chosen, strict=True))

    def _has_mlp(self, block: nn.Module) -> bool:
        return any(name == self.family.mlp_out for name, _ in block.named_modules())
