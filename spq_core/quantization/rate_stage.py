"""The quantization stage that spends a budget of bytes: lattice codes, stored by entropy."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from spq_core.allocation.budget import Budget
from spq_core.calibration.inputs import LayerInputs
from spq_core.families.family import Family
from spq_core.layers.coded import encode, lattice_embedding, lattice_linear, tied_head
from spq_core.layers.slicing import bias_of, embedding_and_head, output_scale_of
from spq_core.layers.steps import CodedWeight
from spq_core.memory import return_freed_memory
from spq_core.quantization.feedback import SharedFeedback
from spq_core.quantization.lattice import LatticeWeight, choose_steps, round_to_lattice
from spq_core.quantization.matrices import Matrix, matrices
from spq_core.recipe_stages import QuantizeStage as QuantizeSettings
from spq_core.report import ModuleReport
from spq_core.stage import StageState

CLOSE_ENOUGH = 0.002
"""How far the last matrix may leave the budget off, as a share of all bytes."""
TRIES = 3
MOST_OCTAVES = 6.0
"""How far one try may move the last matrix's level to make the bytes fit."""


def _left_whole(full: str) -> ModuleReport:
    reason = "there are bytes enough to leave it whole, and it is worth most of those left"
    return ModuleReport(layer=full, stage="quantize", applied=False, reason=reason)


@dataclass(slots=True)
class RateStage:
    """Rounds each matrix at the level its budget gives it."""

    settings: QuantizeSettings
    family: Family
    head_path: str
    embedding_path: str
    dtype: torch.dtype
    """The source's dtype: what a quantized embedding returns."""
    budget: Budget
    name: str = "quantize"
    needs_survey: bool = False
    needs_calibration: bool = True
    needs_inputs: bool = True
    shared: SharedFeedback = field(default_factory=SharedFeedback)

    def survey(self, path: str, block: nn.Module, run_samples: Callable[[], None]) -> None:
        """Nothing to learn: the budget was planned before."""

    def apply(self, path: str, block: nn.Module, inputs: LayerInputs | None) -> list[ModuleReport]:
        """Quantize the block's matrices, each on what its quantized predecessors make of the samples."""
        if not path:
            return self._embedding_and_head(block)
        levels = self.budget.levels()
        reports = [
            _left_whole(f"{path}.{matrix.name}")
            if self.budget.stays(f"{path}.{matrix.source}")
            else self._linear(path, block, matrix, levels)
            for matrix in matrices(block, self.family, inputs)
        ]
        self.shared.forget()
        return reports

    def state(self) -> StageState:
        """The budget: its plan, and what is spent."""
        return StageState(*self.budget.state())

    def restore(self, state: StageState) -> None:
        """Take up the budget."""
        self.budget.restore(state.values, state.tensors)

    def _linear(
        self, path: str, block: nn.Module, matrix: Matrix, levels: Mapping[str, float]
    ) -> ModuleReport:
        source = f"{path}.{matrix.source}"
        row_weights = self.budget.row_weights[source]
        if matrix.following is not None:
            row_weights = row_weights @ matrix.following.square()
        if matrix.second is None:
            raise RuntimeError("rate quantization runs on calibrated inputs only")
        weight, second = matrix.linear.weight.data, matrix.second
        level = levels[source]
        rounded, coded = self._round(weight, second, row_weights, level)
        bias = bias_of(matrix.linear)
        block.set_submodule(matrix.name, lattice_linear(rounded.codes, rounded.steps, bias, coded))
        self.budget.pay(source, level, coded.packed.numel())
        return self._report(f"{path}.{matrix.name}", rounded, coded)

    def _embedding_and_head(self, block: nn.Module) -> list[ModuleReport]:
        embedding, head, tied = embedding_and_head(block, self.embedding_path, self.head_path)
        statistics = self.budget.embedding
        reports: list[ModuleReport] = []
        levels = self.budget.levels()
        if not tied and self.budget.stays(self.head_path):
            reports.append(_left_whole(self.head_path))
        elif not tied:
            weight, second = head.weight.data, statistics.head_inputs
            rounded, coded = self._last(self.head_path, weight, second, levels[self.head_path])
            bias = bias_of(head)
            block.set_submodule(
                self.head_path, lattice_linear(rounded.codes, rounded.steps, bias, coded)
            )
            reports.append(self._report(self.head_path, rounded, coded))
        levels = self.budget.levels()
        if self.settings.embedding and self.budget.stays(self.embedding_path):
            reports.append(_left_whole(self.embedding_path))
        elif self.settings.embedding:
            weight = embedding.weight.data
            second = statistics.gradients + statistics.head_inputs if tied else statistics.gradients
            rounded, coded = self._last(
                self.embedding_path, weight, second, levels[self.embedding_path]
            )
            replacement = lattice_embedding(
                rounded.codes, rounded.steps, self.dtype,
                output_scale=output_scale_of(embedding), coded=coded,
            )  # fmt: skip
            block.set_submodule(self.embedding_path, replacement)
            if tied:
                block.set_submodule(self.head_path, tied_head(replacement))
            reports.append(self._report(self.embedding_path, rounded, coded))
        return reports

    def _last(
        self, name: str, weight: Tensor, second: Tensor, planned: float
    ) -> tuple[LatticeWeight, CodedWeight]:
        """Round a matrix at the end of the run; the very last one makes the bytes fit."""
        budget = self.budget
        very_last = [other for other in budget.curves if other not in budget.spent] == [name]
        level = planned
        rounded, coded = self._round(weight, second, budget.row_weights[name], level)
        for _ in range(TRIES if very_last else 0):
            over = coded.packed.numel() + sum(budget.spent.values()) - budget.wanted_bytes
            if abs(over) <= CLOSE_ENOUGH * budget.wanted_bytes:
                break
            # Half a bit per weight is one octave of the level.
            octaves = min(max(2 * 8 * over / weight.numel(), -MOST_OCTAVES), MOST_OCTAVES)
            level *= 2.0**octaves
            before = coded.packed.numel()
            return_freed_memory()
            rounded, coded = self._round(weight, second, budget.row_weights[name], level)
            if coded.packed.numel() == before:
                break  # as fine or as coarse as it gets
        budget.pay(name, level, coded.packed.numel())
        return rounded, coded

    def _round(
        self, weight: Tensor, second: Tensor, row_weights: Tensor, level: float
    ) -> tuple[LatticeWeight, CodedWeight]:
        feedback = self.shared.of(
            second, self.settings.damping, strongest_first=self.settings.strongest_first
        )
        steps = choose_steps(weight, feedback, row_weights, level)
        rounded = round_to_lattice(weight, feedback, steps, second)
        return rounded, encode(rounded.codes, rounded.steps)

    def _report(self, full: str, rounded: LatticeWeight, coded: CodedWeight) -> ModuleReport:
        return ModuleReport(
            layer=full,
            stage=self.name,
            applied=True,
            figures={
                "bits": round(8 * coded.packed.numel() / rounded.codes.numel(), 3),
                "relative_output_error": round(rounded.relative_error, 5),
                "clipped": round(rounded.clipped, 8),
            },
        )
