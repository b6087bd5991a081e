"""The quantization stage for integer grids: 8, 4 or 3 bits, rounded plainly or with feedback."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from spq_core.errors import RecipeError
from spq_core.formats.packed.linear import PackedEmbedding, PackedLinear
from spq_core.formats.packing import pack
from spq_core.formats.profiles.profile import Profile
from spq_core.formats.slicing import bias_of, embedding_and_head, output_scale_of
from spq_core.methods.quantization.gptq import HessianFactor, SharedHessianFactor
from spq_core.methods.quantization.grid import (
    Grid,
    GridWeight,
    cells_of,
    choose_grid,
    from_zero,
    round_to_grid,
)
from spq_core.methods.quantization.matrices import matrices
from spq_core.methods.quantization.obc import greedy_round
from spq_core.methods.quantization.row_blocks import row_blocks, stacks
from spq_core.methods.quantization.settings import QuantizeSettings
from spq_core.methods.stage import StageState
from spq_core.models.family import Family
from spq_core.report import ModuleReport
from spq_core.streaming.inputs import LayerInputs


@dataclass(slots=True)
class GridStage:
    """Wiring only; the mathematics is in `grid` and `gptq`."""

    settings: QuantizeSettings
    family: Family
    head_path: str
    embedding_path: str
    dtype: torch.dtype
    """The source's dtype: what a quantized embedding returns."""
    profile: Profile
    widths: dict[str, int] = field(default_factory=dict)
    """Of matrices whose codes have a width of their own."""
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
            self._require_whole_groups(names, weights)
            found = self._quantize(names, weights, together[0].second_moment)
            for matrix, name, (packed, error) in zip(together, names, found, strict=True):
                block.set_submodule(matrix.name, packed.linear(bias_of(matrix.linear)))
                reports.append(self._report(name, packed, error))
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
            ((packed, error),) = self._quantize([name], [head.weight.data], second_moment)
            block.set_submodule(self.head_path, packed.linear(bias_of(head)))
            reports.append(self._report(self.head_path, packed, error))
            if tied:
                table = packed.embedding(self.dtype, output_scale_of(embedding))
                linear = block.get_submodule(self.head_path)
                for part in ("packed", "scale", "zero"):
                    setattr(table, part, getattr(linear, part))
                block.set_submodule(self.embedding_path, table)
        if self.settings.embedding and not tied:
            ((packed, error),) = self._quantize(
                [self.embedding_path], [embedding.weight.data], None
            )
            block.set_submodule(
                self.embedding_path, packed.embedding(self.dtype, output_scale_of(embedding))
            )
            reports.append(self._report(self.embedding_path, packed, error))
        return reports

    def _require_whole_groups(self, names: Sequence[str], weights: Sequence[Tensor]) -> None:
        size = self.settings.group_size
        if not self.profile.whole_groups or size is None:
            return
        for name, weight in zip(names, weights, strict=True):
            if weight.shape[1] % size:
                raise RecipeError(
                    f"profile {self.profile.name}: {name} has {weight.shape[1]} columns, which groups "
                    f"of {size} do not divide; choose another group_size"
                )

    def _quantize(
        self, names: Sequence[str], weights: Sequence[Tensor], second_moment: Tensor | None
    ) -> list[tuple["_Packed", float]]:
        """Round matrices that share an input, those of one width together."""
        widths = [self.widths.get(name, self.settings.bits) for name in names]
        found: dict[int, tuple[_Packed, float]] = {}
        for bits in sorted(set(widths)):
            places = [at for at, width in enumerate(widths) if width == bits]
            found |= zip(
                places,
                self._quantize_at(bits, [weights[at] for at in places], second_moment),
                strict=True,
            )
        return [found[at] for at in range(len(weights))]

    def _quantize_at(
        self, bits: int, weights: Sequence[Tensor], second_moment: Tensor | None
    ) -> list[tuple["_Packed", float]]:
        """Round matrices that share an input, and measure the relative error of their weights."""
        settings = self.settings
        feedback: HessianFactor | None = None
        exact = second_moment is not None and settings.is_exact(second_moment.shape[0])
        if second_moment is not None and settings.has_feedback and not exact:
            feedback = self.shared.of(second_moment, settings.damping, act_order=settings.act_order)
        parts: list[list[_Packed]] = [[] for _ in weights]
        lost, energy = [0.0] * len(weights), [0.0] * len(weights)
        for stack in _one_by_one(weights) if feedback is None else stacks(weights):
            rows = torch.cat([weights[index][some] for index, some in stack])
            grid = self._grid(bits, rows, second_moment)
            if exact and second_moment is not None:
                codes = self._exactly(rows, second_moment, grid)
            else:
                codes = round_to_grid(rows, grid, feedback, sparsity=settings.sparsity).codes
            start = 0
            for index, some in stack:
                height = some.stop - some.start
                for at in row_blocks(weights[index][some]):
                    here = slice(start + at.start, start + at.stop)
                    own = grid._replace(scale=grid.scale[here], zero=grid.zero[here])
                    parts[index].append(_Packed.of(codes[here], own))
                    original = rows[here].double()
                    rounded = GridWeight(codes[here], own).dequantized()
                    lost[index] += float((rounded - original).square().sum())
                    energy[index] += float(original.square().sum())
                start += height
        errors = [(a / b) ** 0.5 if b else 0.0 for a, b in zip(lost, energy, strict=True)]
        return list(zip(map(_Packed.joined, parts), errors, strict=True))

    def _exactly(self, rows: Tensor, second_moment: Tensor, grid: Grid) -> Tensor:
        """Codes of rows, each rounded in its own order."""
        settings = self.settings
        codes = greedy_round(
            rows, second_moment, cells_of(grid), sparsity=settings.sparsity,
            cheapest_first=not settings.act_order, damping=settings.damping,
        )  # fmt: skip
        return from_zero(codes, grid).codes

    def _grid(self, bits: int, rows: Tensor, second_moment: Tensor | None) -> Grid:
        """Scales and zero points of rows, some at a time."""
        settings = self.settings
        energy = (
            (second_moment.diagonal() if second_moment is not None else torch.ones_like(rows[0]))
            if settings.scale_search
            else None
        )
        grids = [
            choose_grid(
                rows[at], bits, settings.group_size,
                symmetric=settings.symmetric, column_weights=energy,
            )
            for at in row_blocks(rows)
        ]  # fmt: skip
        scale, zero = (
            torch.cat([getattr(one, part) for one in grids]) for part in ("scale", "zero")
        )
        return grids[0]._replace(scale=scale, zero=zero)

    def _report(self, full: str, packed: "_Packed", error: float) -> ModuleReport:
        stored = packed.codes.numel() + 3 * packed.scale.numel()
        weights = packed.codes.shape[0] * packed.n_in
        return ModuleReport(
            layer=full,
            stage=self.name,
            applied=True,
            figures={
                "bits": round(8 * stored / weights, 3),
                "group_size": packed.group_size,
                "relative_weight_error": round(error, 5),
            },
        )


def _one_by_one(weights: Sequence[Tensor]) -> Iterator[list[tuple[int, slice]]]:
    """Blocks of rows, where nothing is gained by more at a time."""
    for index, weight in enumerate(weights):
        yield from ([(index, some)] for some in row_blocks(weight))


@dataclass(frozen=True, slots=True)
class _Packed:
    """Codes on a grid in the form layers hold them."""

    codes: Tensor
    scale: Tensor
    zero: Tensor
    bits: int
    n_in: int
    group_size: int

    @classmethod
    def of(cls, codes: Tensor, grid: Grid) -> "_Packed":
        """Pack one block of rows."""
        packed = pack(codes, grid.bits)
        return cls(packed, grid.scale.half(), grid.zero, grid.bits, codes.shape[1], grid.group_size)

    @classmethod
    def joined(cls, parts: list["_Packed"]) -> "_Packed":
        """Put blocks of rows under each other."""
        first = parts[0]
        codes, scale, zero = (
            torch.cat([getattr(part, name) for part in parts])
            for name in ("codes", "scale", "zero")
        )
        return cls(codes, scale, zero, first.bits, first.n_in, first.group_size)

    def linear(self, bias: Tensor | None) -> PackedLinear:
        """Make a linear layer."""
        return PackedLinear(
            self.codes, self.scale, self.zero, bias,
            bits=self.bits, n_in=self.n_in, group_size=self.group_size,
        )  # fmt: skip

    def embedding(self, dtype: torch.dtype, output_scale: float) -> PackedEmbedding:
        """Make an embedding."""
        return PackedEmbedding(
            self.codes, self.scale, self.zero, dtype,
            bits=self.bits, n_in=self.n_in, group_size=self.group_size,
            output_scale=output_scale,
        )  # fmt: skip
