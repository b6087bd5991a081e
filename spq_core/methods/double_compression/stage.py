"""The stage that makes codes which compress well, and compresses them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from spq_core.formats.lattice.steps import Steps, exponents_of
from spq_core.formats.range_coded.coding import RangeCoded, encode
from spq_core.formats.range_coded.linear import LatticeEmbedding, LatticeLinear
from spq_core.formats.slicing import bias_of, embedding_and_head, output_scale_of
from spq_core.methods.double_compression.codes import (
    Rounded,
    choose_alpha,
    column_scales,
    pruned_codes,
    relative_error,
    round_codes,
)
from spq_core.methods.double_compression.folding import alike_in_groups, fold
from spq_core.methods.double_compression.settings import DoubleCompressionSettings
from spq_core.methods.quantization.matrices import Matrix, matrices
from spq_core.methods.stage import StageContext, Stateless
from spq_core.models.family import Family
from spq_core.report import ModuleReport
from spq_core.streaming.inputs import LayerInputs


class _Scaling(NamedTuple):
    """How columns of matrices that share an input are scaled."""

    alpha: float
    scales: Tensor
    is_folded: bool
    """Whether what is in front of them is divided by the scales."""
    peak: Tensor
    """Of the input as it was."""
    second_moment: Tensor


@dataclass(slots=True)
class DoubleCompressionStage(Stateless):
    """Scales, rounds, prunes and codes one matrix after the other."""

    settings: DoubleCompressionSettings
    family: Family
    head_path: str
    embedding_path: str
    dtype: torch.dtype
    """The source's dtype: what a coded embedding returns."""
    name: str = "double-compression"
    needs_inputs: bool = True

    def apply(self, path: str, block: nn.Module, inputs: LayerInputs | None) -> list[ModuleReport]:
        """Code a layer's matrices, or the embedding and the head."""
        if not path:
            return self._embedding_and_head(block)
        if inputs is None:
            raise RuntimeError("double-compression runs on calibrated inputs only")
        return [
            report
            for together in matrices(block, self.family, inputs)
            for report in self._group(path, block, together, inputs)
        ]

    def _group(
        self, path: str, block: nn.Module, together: Sequence[Matrix], inputs: LayerInputs
    ) -> list[ModuleReport]:
        """Matrices that share an input."""
        weights = [one.linear.weight.data.float() for one in together]
        scaling = self._scaled(block, together, inputs)
        reports: list[ModuleReport] = []
        for one, weight in zip(together, weights, strict=True):
            rounded = self._rounded(weight, scaling)
            steps = rounded.steps
            if not scaling.is_folded:
                steps = _with_columns(steps, scaling.scales)
            coded = encode(rounded.codes, steps)
            layer = LatticeLinear(rounded.codes, steps, bias_of(one.linear), coded)
            block.set_submodule(one.name, layer)
            row_steps = rounded.steps.row_steps.to(weight.device)
            back = rounded.codes * row_steps[:, None] / scaling.scales
            error = relative_error(weight, back, scaling.second_moment)
            figures = {"alpha": scaling.alpha, "folded": float(scaling.is_folded)}
            reports.append(_report(f"{path}.{one.name}", rounded, coded, error, figures))
        if scaling.is_folded:
            inputs.cut(together[0].source)  # it is another now
        return reports

    def _scaled(
        self, block: nn.Module, together: Sequence[Matrix], inputs: LayerInputs
    ) -> _Scaling:
        """Choose scales, and fold them into what is in front."""
        first = together[0]
        second_moment = _second_moment(first)
        peak, is_between = _peak(first, inputs), first.name == f"{first.source}.up"
        if not is_between:
            peak = alike_in_groups(peak, block, self.family, first.source)
        alpha = self.settings.alpha
        if isinstance(alpha, str):
            alpha = choose_alpha(
                [one.linear.weight.data.float() for one in together],
                peak, second_moment, self.settings.scales, self.settings.most_error,
            )  # fmt: skip
        scales = column_scales(peak, alpha)
        is_folded = bool((scales != 1).any()) and not is_between
        if is_folded:
            names = [one.source for one in together]
            consumers = [one.linear for one in together]
            run = partial(inputs.forward, inputs.batches[0])
            is_folded = fold(block, self.family, names[0], consumers, scales, run)
        return _Scaling(alpha, scales, is_folded, peak, second_moment)

    def _rounded(self, weight: Tensor, scaling: _Scaling) -> Rounded:
        """Codes of a matrix, pruned if that is wanted."""
        rounded = round_codes(weight * scaling.scales, self.settings.scales)
        if not self.settings.pruned:
            return rounded
        importance = scaling.peak / scaling.scales
        if self.settings.prune_by == "rate":
            importance = _root_mean_square(scaling.second_moment) / scaling.scales
        codes = pruned_codes(rounded, importance, self.settings.pruned, self.settings.prune_by)
        return rounded._replace(codes=codes)

    def _embedding_and_head(self, block: nn.Module) -> list[ModuleReport]:
        embedding, head, tied = embedding_and_head(block, self.embedding_path, self.head_path)
        reports: list[ModuleReport] = []
        if not tied:
            rounded, coded = self._table(head.weight.data)
            layer = LatticeLinear(rounded.codes, rounded.steps, bias_of(head), coded)
            block.set_submodule(self.head_path, layer)
            reports.append(_report(self.head_path, rounded, coded))
        if self.settings.embedding:
            rounded, coded = self._table(embedding.weight.data)
            scale = output_scale_of(embedding)
            replacement = LatticeEmbedding(rounded.codes, rounded.steps, self.dtype, coded, scale)
            block.set_submodule(self.embedding_path, replacement)
            if tied:
                block.set_submodule(self.head_path, replacement.tied_head(bias_of(head)))
            reports.append(_report(self.embedding_path, rounded, coded))
        return reports

    def _table(self, weight: Tensor) -> tuple[Rounded, RangeCoded]:
        rounded = round_codes(weight.float(), self.settings.scales)
        return rounded, encode(rounded.codes, rounded.steps)


def _second_moment(matrix: Matrix) -> Tensor:
    if matrix.second_moment is None:
        raise RuntimeError("double-compression runs on calibrated inputs only")
    return matrix.second_moment


def _peak(matrix: Matrix, inputs: LayerInputs) -> Tensor:
    """Largest values of what a matrix receives; between factors of a pair three times the root of the mean square stands for them."""
    peak = None
    if matrix.name != f"{matrix.source}.up":
        peak = inputs.moments(matrix.source).peak
    return 3.0 * _root_mean_square(_second_moment(matrix)) if peak is None else peak


def _root_mean_square(second_moment: Tensor) -> Tensor:
    return second_moment.diagonal().clamp(min=0.0).sqrt()


def _with_columns(steps: Steps, scales: Tensor) -> Steps:
    """Steps of the weights whose columns were scaled, for where that could not be folded away."""
    largest = float(scales.max())
    columns = exponents_of(largest / scales.cpu())
    return Steps(steps.base / largest, steps.rows, columns)


def _report(
    full: str,
    rounded: Rounded,
    coded: RangeCoded,
    error: float | None = None,
    figures: dict[str, float] | None = None,
) -> ModuleReport:
    bits = round(8 * coded.packed.numel() / rounded.codes.numel(), 3)
    zeros = float((rounded.codes == 0).double().mean())
    return ModuleReport(
        layer=full,
        stage="double-compression",
        applied=True,
        figures={
            "bits": bits,
            "zeros": round(zeros, 4),
            **({} if error is None else {"relative_output_error": round(error, 6)}),
            **(figures or {}),
        },
    )


def make_stage(
    settings: DoubleCompressionSettings, context: StageContext
) -> DoubleCompressionStage:
    """Of what the settings say."""
    skeleton = context.skeleton
    return DoubleCompressionStage(
        settings, skeleton.family, skeleton.head_path, skeleton.embedding_path, context.dtype
    )
