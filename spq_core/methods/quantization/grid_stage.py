"""The quantization stage for integer grids: 8, 4 or 3 bits, rounded plainly or with feedback."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from spq_core.errors import RecipeError
from spq_core.formats.packed.linear import PackedEmbedding, PackedLinear
from spq_core.formats.packing import pack
from spq_core.methods.quantization.codes_stage import (
    Codes,
    CodesStage,
    RelativeError,
    one_by_one,
)
from spq_core.methods.quantization.gptq import HessianFactor
from spq_core.methods.quantization.grid import (
    Grid,
    GridWeight,
    cells_of,
    choose_grid,
    from_zero,
    round_to_grid,
)
from spq_core.methods.quantization.obc import greedy_round
from spq_core.methods.quantization.row_blocks import row_blocks, stacks


@dataclass(slots=True)
class GridStage(CodesStage):
    """Wiring only; the mathematics is in `grid` and `gptq`."""

    def level(self, name: str, columns: int) -> int:
        """A width in bits.

        Raises:
            RecipeError: the profile's readers want whole groups, and a row is not.
        """
        size = self.settings.group_size
        if self.profile.whole_groups and size is not None and columns % size:
            raise RecipeError(
                f"profile {self.profile.name}: {name} has {columns} columns, which groups "
                f"of {size} do not divide; choose another group_size"
            )
        return self.widths.get(name, self.settings.bits)

    def quantize_at(
        self, level: int, weights: Sequence[Tensor], second_moment: Tensor | None
    ) -> list[Codes]:
        """Round matrices that share an input to codes of `level` bits."""
        settings = self.settings
        feedback: HessianFactor | None = None
        exact = second_moment is not None and settings.is_exact(second_moment.shape[0])
        if second_moment is not None and settings.has_feedback and not exact:
            feedback = self.shared.of(second_moment, settings.damping, act_order=settings.act_order)
        parts: list[list[_Packed]] = [[] for _ in weights]
        errors = [RelativeError() for _ in weights]
        for stack in one_by_one(weights) if feedback is None else stacks(weights):
            rows = torch.cat([weights[index][some] for index, some in stack])
            grid = self._grid(level, rows, second_moment)
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
                    errors[index].add(rows[here], GridWeight(codes[here], own).dequantized())
                start += height
        return [_Packed.joined(some, one.value) for some, one in zip(parts, errors, strict=True)]

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


@dataclass(frozen=True, slots=True)
class _Packed:
    """Codes on a grid in the form layers hold them."""

    codes: Tensor
    scale: Tensor
    zero: Tensor
    bits: int
    n_in: int
    group_size: int
    error: float = 0.0
    """Relative, of the weights."""

    parts: ClassVar[tuple[str, ...]] = ("packed", "scale", "zero")

    @classmethod
    def of(cls, codes: Tensor, grid: Grid) -> "_Packed":
        """Pack one block of rows."""
        packed = pack(codes, grid.bits)
        return cls(packed, grid.scale.half(), grid.zero, grid.bits, codes.shape[1], grid.group_size)

    @classmethod
    def joined(cls, parts: list["_Packed"], error: float) -> "_Packed":
        """Put blocks of rows under each other."""
        first = parts[0]
        codes, scale, zero = (
            torch.cat([getattr(part, name) for part in parts])
            for name in ("codes", "scale", "zero")
        )
        return cls(codes, scale, zero, first.bits, first.n_in, first.group_size, error)

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

    def figures(self) -> dict[str, float | int | str]:
        """Bits of a weight, scales and all, and the error."""
        stored = self.codes.numel() + 3 * self.scale.numel()
        weights = self.codes.shape[0] * self.n_in
        return {
            "bits": round(8 * stored / weights, 3),
            "group_size": self.group_size,
            "relative_weight_error": round(self.error, 5),
        }
