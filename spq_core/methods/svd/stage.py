"""The SVD stage: projections become low-rank pairs where that saves elements."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from spq_core.formats.low_rank.linear import LowRankLinear
from spq_core.formats.slicing import bias_of, dense_linear, float_weight, linear_at
from spq_core.methods.stage import StageContext, StageState
from spq_core.methods.svd.factorize import (
    LowRankFactors,
    Spectrum,
    decompose,
    decompose_output,
    project_outputs,
    truncate,
)
from spq_core.methods.svd.rank import RankDecision, decide_rank
from spq_core.methods.svd.settings import SvdSettings
from spq_core.models.family import Family
from spq_core.report import ModuleReport
from spq_core.streaming.inputs import LayerInputs
from spq_core.streaming.inverse import DAMPING
from spq_core.streaming.shrinkage import extra_damping


@dataclass(frozen=True, slots=True)
class SvdStage:
    """Wiring only; the mathematics is in `rank` and `factorize`."""

    settings: SvdSettings
    family: Family
    ranks: dict[str, int] = field(default_factory=dict)
    """With `variance: auto`, the matrices to factorise and their ranks."""
    output_weights: dict[str, Tensor] = field(default_factory=dict)
    """With `objective: loss`, how much each output counts."""
    name: str = "svd"

    @property
    def needs_inputs(self) -> bool:
        """Whether factors follow the outputs."""
        return self.settings.needs_calibration

    def apply(self, path: str, block: nn.Module, inputs: LayerInputs | None) -> list[ModuleReport]:
        """Factorise the block's projections."""
        present = dict(block.named_modules())
        return [
            self._factorise(path, block, name, inputs if self.needs_inputs else None)
            for name in self.settings.matrices(self.family)
            if name in present
        ]

    def _decide(self, full: str, spectrum: Spectrum, shape: tuple[int, int]) -> RankDecision:
        variance = self.settings.variance
        if not isinstance(variance, str):
            return decide_rank(spectrum.singular_values, shape, variance)
        rank = self.ranks.get(full)
        if rank is None:
            whole = min(shape)
            reason = "its bytes are worth more than a pair would save"
            return RankDecision(whole, whole, factorise=False, reason=reason)
        return RankDecision(rank, rank, factorise=True, reason="")

    def state(self) -> StageState:
        """The ranks a target chose, and what outputs count."""
        return StageState(self.ranks, self.output_weights)

    def restore(self, state: StageState) -> None:
        """Take up both."""
        self.ranks.update(state.values)
        self.output_weights.update(state.tensors)

    def keep_rows(self, name: str, kept: Tensor) -> None:
        """Forget the rows of a matrix that another stage removed."""
        if name in self.output_weights:
            self.output_weights[name] = self.output_weights[name][kept]

    def _factorise(
        self, path: str, block: nn.Module, name: str, inputs: LayerInputs | None
    ) -> ModuleReport:
        layer = linear_at(block, name)
        weight = float_weight(layer)
        plain = decompose(weight) if inputs is None or self.settings.rank_rule == "weight" else None
        outputs, weights = None, self.output_weights.get(f"{path}.{name}")
        if inputs is not None:
            moments = inputs.moments(name)
            outputs = decompose_output(
                weight, moments.second_moment, weights, damping=DAMPING + extra_damping(moments)
            )
        judged = plain if plain is not None else outputs
        if judged is None:
            raise RuntimeError("no spectrum to choose a rank from")
        n_out, n_in = weight.shape
        decision = self._decide(f"{path}.{name}", judged, (n_out, n_in))
        if decision.factorise:
            up, down = _factors(weight, plain, outputs, decision.rank, self.settings, weights)
            block.set_submodule(
                name, LowRankLinear(dense_linear(down, None), dense_linear(up, bias_of(layer)))
            )
            if inputs is not None:
                inputs.changed(name)
        return ModuleReport(
            layer=f"{path}.{name}",
            stage=self.name,
            applied=decision.factorise,
            reason=decision.reason,
            figures={
                "rank": decision.rank,
                "rank_by_variance": decision.rank_by_variance,
                "full_rank": min(n_out, n_in),
            },
        )


def _factors(
    weight: Tensor,
    plain: Spectrum | None,
    outputs: Spectrum | None,
    rank: int,
    settings: SvdSettings,
    output_weights: Tensor | None,
) -> LowRankFactors:
    if outputs is not None:
        return project_outputs(weight, outputs, rank, settings.singular_values, output_weights)
    if plain is None:
        raise RuntimeError("no spectrum to truncate")
    factors = truncate(weight, plain, rank)
    moved = plain.singular_values[:rank].float().clamp(min=torch.finfo(torch.float32).tiny)
    share = {"up": 0.0, "split": 0.5, "down": 1.0}[settings.singular_values]
    if share == 0.0:
        return factors
    moved = moved**share
    return LowRankFactors(factors.up / moved, factors.down * moved[:, None])


def make_stage(settings: SvdSettings, context: StageContext) -> SvdStage:
    """With the ranks and the output weights that were planned."""
    family, plan = context.skeleton.family, context.plan
    weights = plan.weights_of(settings.matrices(family)) if settings.needs_sensitivity else {}
    stage = SvdStage(settings, family, dict(plan.structure.ranks), weights)
    context.cuts.tell(stage.keep_rows)
    return stage
