"""What the stages that store codes in place of weights have in common."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from spq_core.formats.layer import CompressedEmbedding, CompressedLinear
from spq_core.formats.profiles.profile import Profile
from spq_core.formats.slicing import bias_of, embedding_and_head, output_scale_of
from spq_core.methods.quantization.gptq import SharedHessianFactor
from spq_core.methods.quantization.matrices import matrices
from spq_core.methods.quantization.row_blocks import row_blocks
from spq_core.methods.quantization.settings import QuantizeSettings
from spq_core.methods.stage import StageState
from spq_core.models.family import Family
from spq_core.report import ModuleReport
from spq_core.streaming.inputs import LayerInputs


@dataclass(slots=True)
class CodesStage(ABC):
    """Wiring only. What a level is, and how codes of it are found, is up to those derived from it."""

    settings: QuantizeSettings
    family: Family
    head_path: str
    embedding_path: str
    dtype: torch.dtype
    """The source's dtype: what a quantized embedding returns."""
    profile: Profile
    widths: dict[str, int] = field(default_factory=dict)
    """Levels that a target chose, by matrix."""
    name: str = "quantize"
    shared: SharedHessianFactor = field(default_factory=SharedHessianFactor)

    @property
    def needs_inputs(self) -> bool:
        """Whether rounding looks at inputs."""
        return self.settings.needs_calibration

    def apply(self, path: str, block: nn.Module, inputs: LayerInputs | None) -> list[ModuleReport]:
        """Quantize the block's matrices, each on what its quantized predecessors make of the samples."""
        if not path:
            return self._embedding_and_head(block, inputs) if self.profile.tables else []
        reports: list[ModuleReport] = []
        calibrated = inputs if self.needs_inputs else None
        for together in matrices(block, self.family, calibrated):
            names = [f"{path}.{one.name}" for one in together]
            weights = [one.linear.weight.data for one in together]
            found = self._quantize(names, weights, together[0].second_moment)
            for matrix, name, codes in zip(together, names, found, strict=True):
                if codes is not None:
                    block.set_submodule(matrix.name, codes.linear(bias_of(matrix.linear)))
                reports.append(self._report(name, codes))
        self.shared.forget()
        return reports

    def state(self) -> StageState:
        """The widths a target chose."""
        return StageState(self.widths, {})

    def restore(self, state: StageState) -> None:
        """Take them up."""
        self.widths.update(state.values)

    def _embedding_and_head(
        self, block: nn.Module, inputs: LayerInputs | None
    ) -> list[ModuleReport]:
        """A tied matrix is rounded as a head: that is where its errors are multiplied."""
        embedding, head, tied = embedding_and_head(block, self.embedding_path, self.head_path)
        reports: list[ModuleReport] = []
        calibrated = inputs is not None and self.needs_inputs
        if not tied or self.settings.embedding:
            second_moment = (
                inputs.moments(self.head_path).second_moment if inputs and calibrated else None
            )
            name = self.embedding_path if tied else self.head_path
            (codes,) = self._quantize([name], [head.weight.data], second_moment)
            reports.append(self._report(self.head_path, codes))
            if codes is not None:
                linear = codes.linear(bias_of(head))
                block.set_submodule(self.head_path, linear)
                if tied:
                    table = codes.embedding(self.dtype, output_scale_of(embedding))
                    for part in codes.parts:
                        setattr(table, part, getattr(linear, part))
                    block.set_submodule(self.embedding_path, table)
        if self.settings.embedding and not tied:
            (codes,) = self._quantize([self.embedding_path], [embedding.weight.data], None)
            reports.append(self._report(self.embedding_path, codes))
            if codes is not None:
                table = codes.embedding(self.dtype, output_scale_of(embedding))
                block.set_submodule(self.embedding_path, table)
        return reports

    def _quantize(
        self, names: Sequence[str], weights: Sequence[Tensor], second_moment: Tensor | None
    ) -> list["Codes | None"]:
        """Round matrices that share an input, those of one level together; None for those that stay."""
        levels = [
            self.level(name, weight.shape[1]) for name, weight in zip(names, weights, strict=True)
        ]
        made: dict[int, Codes] = {}
        for level in dict.fromkeys(one for one in levels if one is not None):
            places = [at for at, one in enumerate(levels) if one == level]
            found = self.quantize_at(level, [weights[at] for at in places], second_moment)
            made |= zip(places, found, strict=True)
        return [made.get(at) for at in range(len(weights))]

    def _report(self, full: str, codes: "Codes | None") -> ModuleReport:
        if codes is None:
            return ModuleReport(layer=full, stage=self.name, applied=False, reason=self.why_whole)
        return ModuleReport(layer=full, stage=self.name, applied=True, figures=codes.figures())

    why_whole: ClassVar[str] = ""
    """What reports say of a matrix that has no level."""

    @abstractmethod
    def level(self, name: str, columns: int) -> Any:
        """What a matrix is rounded to; None where it stays as it is.

        Raises:
            RecipeError: it cannot be, and must.
        """

    @abstractmethod
    def quantize_at(
        self, level: Any, weights: Sequence[Tensor], second_moment: Tensor | None
    ) -> "list[Codes]":
        """Round matrices that share an input."""


class Codes(Protocol):
    """A rounded matrix."""

    parts: ClassVar[tuple[str, ...]]
    """Names of the tensors that embedding and head share."""

    def linear(self, bias: Tensor | None) -> CompressedLinear:
        """Make a linear layer."""
        ...

    def embedding(self, dtype: torch.dtype, output_scale: float) -> CompressedEmbedding:
        """Make an embedding."""
        ...

    def figures(self) -> dict[str, float | int | str]:
        """For the report."""
        ...


class RelativeError:
    """How far a matrix is from what it was, summed up from some rows at a time."""

    def __init__(self) -> None:
        """Begin with no rows."""
        self._lost = self._energy = 0.0

    def add(self, original: Tensor, rounded: Tensor) -> None:
        """Count rows in."""
        original = original.double()
        self._lost += float((rounded - original).square().sum())
        self._energy += float(original.square().sum())

    @property
    def value(self) -> float:
        """Norm of the difference over the norm of the matrix."""
        return (self._lost / self._energy) ** 0.5 if self._energy else 0.0


def one_by_one(weights: Sequence[Tensor]) -> Iterator[list[tuple[int, slice]]]:
    """Blocks of rows, where nothing is gained by more at a time."""
    for index, weight in enumerate(weights):
        yield from ([(index, some)] for some in row_blocks(weight))
