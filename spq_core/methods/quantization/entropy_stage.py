"""The quantization stage that spends a budget of bytes: lattice codes, stored by entropy."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from spq_core.formats.range_coded.coding import RangeCoded, encode
from spq_core.formats.range_coded.linear import LatticeEmbedding, LatticeLinear
from spq_core.formats.slicing import bias_of, embedding_and_head, output_scale_of
from spq_core.memory import return_freed_memory
from spq_core.methods.quantization.gptq import SharedHessianFactor
from spq_core.methods.quantization.lattice import LatticeWeight, plan_lattice, round_to_lattice
from spq_core.methods.quantization.matrices import Matrix, matrices
from spq_core.methods.quantization.settings import QuantizeSettings
from spq_core.methods.stage import StageState
from spq_core.models.family import Family
from spq_core.planning.budget import Budget
from spq_core.report import ModuleReport
from spq_core.streaming.inputs import LayerInputs

CLOSE_ENOUGH = 0.002
"""How far the last matrix may leave the budget off, as a share of all bytes."""
TRIES = 5
MOST_OCTAVES = 6.0
"""How far one try may move the last matrix's distortion to make the bytes fit."""


def _left_whole(full: str) -> ModuleReport:
    reason = "kept in the source dtype: budget left over, highest loss per byte"
    return ModuleReport(layer=full, stage="quantize", applied=False, reason=reason)


class _Wanted(NamedTuple):
    """A matrix, how much each of its outputs counts, and its distortion."""

    weight: Tensor
    row_weights: Tensor
    distortion: float


class _Try(NamedTuple):
    distortion: float
    over: float
    """Bytes beyond what is wanted of the whole."""
    rounded: LatticeWeight
    coded: RangeCoded


def _octaves(over: float, elements: int) -> float:
    """How much coarser a matrix must be to take so many bytes less: half a bit per weight is an octave of the distortion."""
    return min(max(2 * 8 * over / elements, -MOST_OCTAVES), MOST_OCTAVES)


@dataclass(slots=True)
class EntropyStage:
    """Rounds each matrix at the distortion its budget gives it."""

    settings: QuantizeSettings
    family: Family
    head_path: str
    embedding_path: str
    dtype: torch.dtype
    """The source's dtype: what a quantized embedding returns."""
    budget: Budget
    name: str = "quantize"
    needs_inputs: bool = True
    shared: SharedHessianFactor = field(default_factory=SharedHessianFactor)

    def apply(self, path: str, block: nn.Module, inputs: LayerInputs | None) -> list[ModuleReport]:
        """Quantize the block's matrices, each on what its quantized predecessors make of the samples."""
        if not path:
            return self._embedding_and_head(block)
        distortions = self.budget.distortions()
        reports: list[ModuleReport] = []
        for together in matrices(block, self.family, inputs):
            changed: list[Matrix] = []
            for matrix in together:
                if self.budget.stays(f"{path}.{matrix.source}"):
                    reports.append(_left_whole(f"{path}.{matrix.name}"))
                else:
                    changed.append(matrix)
            if changed:
                reports += self._linears(path, block, changed, distortions)
        self.shared.forget()
        return reports

    def state(self) -> StageState:
        """The budget: its plan, and what is spent."""
        return StageState(*self.budget.state())

    def restore(self, state: StageState) -> None:
        """Take up the budget."""
        self.budget.restore(state.values, state.tensors)

    def _linears(
        self,
        path: str,
        block: nn.Module,
        together: Sequence[Matrix],
        distortions: Mapping[str, float],
    ) -> list[ModuleReport]:
        """Round matrices that share an input."""
        second_moment = together[0].second_moment
        if second_moment is None:
            raise RuntimeError("quantization by entropy runs on calibrated inputs only")
        wanted = [
            _Wanted(
                one.linear.weight.data,
                self._row_weights(f"{path}.{one.source}", one.following),
                distortions[f"{path}.{one.source}"],
            )
            for one in together
        ]
        reports: list[ModuleReport] = []
        for matrix, result in zip(together, self._round(wanted, second_moment), strict=True):
            source, (rounded, coded) = f"{path}.{matrix.source}", result
            bias = bias_of(matrix.linear)
            block.set_submodule(
                matrix.name, LatticeLinear(rounded.codes, rounded.steps, bias, coded)
            )
            self.budget.pay(source, distortions[source], coded.packed.numel())
            reports.append(self._report(f"{path}.{matrix.name}", rounded, coded))
        return reports

    def _row_weights(self, source: str, following: Tensor | None) -> Tensor:
        own = self.budget.row_weights[source]
        return own if following is None else own @ following.square()

    def _embedding_and_head(self, block: nn.Module) -> list[ModuleReport]:
        embedding, head, tied = embedding_and_head(block, self.embedding_path, self.head_path)
        statistics = self.budget.embedding
        reports: list[ModuleReport] = []
        distortions = self.budget.distortions()
        if not tied and self.budget.stays(self.head_path):
            reports.append(_left_whole(self.head_path))
        elif not tied:
            weight, second_moment = head.weight.data, statistics.head_inputs
            rounded, coded = self._last(
                self.head_path, weight, second_moment, distortions[self.head_path]
            )
            bias = bias_of(head)
            block.set_submodule(
                self.head_path, LatticeLinear(rounded.codes, rounded.steps, bias, coded)
            )
            reports.append(self._report(self.head_path, rounded, coded))
        distortions = self.budget.distortions()
        if self.settings.embedding and self.budget.stays(self.embedding_path):
            reports.append(_left_whole(self.embedding_path))
        elif self.settings.embedding:
            weight = embedding.weight.data
            second_moment = (
                statistics.gradients + statistics.head_inputs if tied else statistics.gradients
            )
            rounded, coded = self._last(
                self.embedding_path, weight, second_moment, distortions[self.embedding_path]
            )
            scale = output_scale_of(embedding)
            replacement = LatticeEmbedding(rounded.codes, rounded.steps, self.dtype, coded, scale)
            block.set_submodule(self.embedding_path, replacement)
            if tied:
                block.set_submodule(self.head_path, replacement.tied_head(bias_of(head)))
            reports.append(self._report(self.embedding_path, rounded, coded))
        return reports

    def _last(
        self, name: str, weight: Tensor, second_moment: Tensor, planned: float
    ) -> tuple[LatticeWeight, RangeCoded]:
        """Round a matrix at the end of the run; the very last one makes the bytes fit."""
        budget = self.budget
        weights = budget.row_weights[name]

        def tried(distortion: float) -> _Try:
            return_freed_memory()
            wanted = [_Wanted(weight, weights, distortion)]
            ((rounded, coded),) = self._round(wanted, second_moment)
            over = coded.packed.numel() + sum(budget.spent.values()) - budget.wanted_bytes
            return _Try(distortion, over, rounded, coded)

        best = latest = tried(planned)
        finer: list[float] = []
        coarser: list[float] = []  # distortions, with bytes over and under what is wanted
        close = CLOSE_ENOUGH * budget.wanted_bytes
        if [other for other in budget.curves if other not in budget.spent] != [name]:
            close = math.inf
        for _ in range(TRIES):
            if abs(latest.over) <= close:
                break
            (finer if latest.over > 0 else coarser).append(latest.distortion)
            distortion = latest.distortion * 2.0 ** _octaves(latest.over, weight.numel())
            if finer and coarser and not max(finer) < distortion < min(coarser):
                distortion = math.sqrt(max(finer) * min(coarser))
            before, latest = latest, tried(distortion)
            best = min(best, latest, key=lambda one: (one.over > close, abs(one.over)))
            if latest.over == before.over:
                break  # as fine or as coarse as it gets
        budget.pay(name, best.distortion, best.coded.packed.numel())
        return best.rounded, best.coded

    def _round(
        self, wanted: Sequence["_Wanted"], second_moment: Tensor
    ) -> list[tuple[LatticeWeight, RangeCoded]]:
        feedback = self.shared.of(
            second_moment, self.settings.damping, act_order=self.settings.act_order
        )
        plans = [
            plan_lattice(
                one.weight, feedback, one.row_weights, one.distortion, self.settings.trellis_states
            )
            for one in wanted
        ]
        found: dict[int, LatticeWeight] = {}
        for states in {plan.states for plan in plans}:
            places = [at for at, plan in enumerate(plans) if plan.states == states]
            weights, own = [wanted[at].weight for at in places], [plans[at] for at in places]
            found |= zip(
                places, round_to_lattice(weights, feedback, own, second_moment), strict=True
            )
        rounded = [found[at] for at in range(len(wanted))]
        return [(one, encode(one.codes, one.steps, one.states)) for one in rounded]

    def _report(self, full: str, rounded: LatticeWeight, coded: RangeCoded) -> ModuleReport:
        return ModuleReport(
            layer=full,
            stage=self.name,
            applied=True,
            figures={
                "bits": round(8 * coded.packed.numel() / rounded.codes.numel(), 3),
                "relative_output_error": round(rounded.relative_error, 5),
                "clipped": round(rounded.clipped, 8),
                "trellis_states": rounded.states,
            },
        )
