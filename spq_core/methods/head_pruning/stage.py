"""The stage that removes attention heads."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from spq_core.formats.slicing import bias_of, dense_linear, float_weight, linear_at
from spq_core.methods.head_pruning.heads import columns_of, cut_heads, groups_of, score_groups
from spq_core.methods.head_pruning.settings import PruneHeadsSettings
from spq_core.methods.pruning.compensation import compensate
from spq_core.methods.pruning.stage import forget
from spq_core.methods.stage import StageContext, StageState
from spq_core.models.family import Family
from spq_core.report import ModuleReport
from spq_core.streaming.inputs import LayerInputs


@dataclass(slots=True)
class PruneHeadsStage:
    """Removes from each layer the number of groups that the plan says, the weakest ones."""

    settings: PruneHeadsSettings
    family: Family
    kept: dict[str, int]
    """Per decoder layer, how many groups stay."""
    output_weights: dict[str, Tensor]
    """How much each output of the output projections counts."""
    on_cut: Callable[[str, Tensor], None] = forget
    """Told about each matrix that loses rows, and which it keeps."""
    name: str = "prune-heads"
    needs_inputs: bool = True

    def apply(self, path: str, block: nn.Module, inputs: LayerInputs | None) -> list[ModuleReport]:
        """Cut a layer's heads, and let the output projection make up for them."""
        if not path or inputs is None:
            return []
        groups, keep = groups_of(block, self.family), self.kept[path]
        if keep < groups:
            self._cut(path, block, groups, keep, inputs)
        return [
            ModuleReport(
                layer=f"{path}.{name}",
                stage=self.name,
                applied=keep < groups,
                reason=""
                if keep < groups
                else "no head group here is among the cheapest to remove",
                figures={"groups": groups, "kept": keep},
            )
            for name in self.family.attention
        ]

    def _cut(
        self, path: str, block: nn.Module, groups: int, keep: int, inputs: LayerInputs
    ) -> None:
        last = self.family.attention[-1]
        output, moments = linear_at(block, last), inputs.moments(last)
        weight = float_weight(output)
        scores = score_groups(
            weight, moments.second_moment, groups, self.output_weights.get(f"{path}.{last}")
        )
        kept = torch.topk(scores, keep).indices.sort().values
        columns = columns_of(kept, groups, weight.shape[1])
        updated = compensate(self.settings.update, weight, bias_of(output), columns, moments)
        for name in self.family.attention[:-1]:
            rows = columns_of(kept, groups, float_weight(linear_at(block, name)).shape[0])
            self.on_cut(f"{path}.{name}", rows)
        cut_heads(block, self.family, kept, groups)
        block.set_submodule(last, dense_linear(*updated))
        inputs.cut(last)

    def state(self) -> StageState:
        """The plan's numbers and weights."""
        return StageState(self.kept, self.output_weights)

    def restore(self, state: StageState) -> None:
        """Take up what the plan said."""
        self.kept.update(state.values)
        self.output_weights.update(state.tensors)


def make_stage(settings: PruneHeadsSettings, context: StageContext) -> PruneHeadsStage:
    """With the numbers of groups that were planned."""
    family, plan = context.skeleton.family, context.plan
    weights = plan.weights_of(family.attention[-1:])
    return PruneHeadsStage(settings, family, dict(plan.structure.heads), weights, context.cuts.cut)
