"""The quantization stage for ggml's block types, which GGUF files hold."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from spq_core.formats.ggml.coding import pack, widened
from spq_core.formats.ggml.linear import GgmlEmbedding, GgmlLinear
from spq_core.formats.ggml.types import BlockType
from spq_core.methods.quantization.block_descent import descend
from spq_core.methods.quantization.block_grid import choose_blocks, round_to_blocks
from spq_core.methods.quantization.codes_stage import (
    Codes,
    CodesStage,
    RelativeError,
    one_by_one,
)
from spq_core.methods.quantization.gptq import HessianFactor
from spq_core.methods.quantization.row_blocks import stacks


@dataclass(slots=True)
class BlockStage(CodesStage):
    """Wiring only; the mathematics is in `block_grid`, `gptq` and `block_descent`."""

    why_whole: ClassVar[str] = "its rows are not whole blocks of any type of ggml's"

    def level(self, name: str, columns: int) -> BlockType | None:
        """A type whose blocks divide the row."""
        is_table = name in {self.embedding_path, self.head_path}
        return self.settings.type_of(columns, self.widths.get(name, 0), is_table=is_table)

    def quantize_at(
        self, level: BlockType, weights: Sequence[Tensor], second_moment: Tensor | None
    ) -> list[Codes]:
        """Round matrices that share an input to blocks of one type."""
        settings = self.settings
        feedback: HessianFactor | None = None
        energy: Tensor | None = None
        if second_moment is not None:
            energy = second_moment.diagonal()
            if settings.has_feedback:
                feedback = self.shared.of(
                    second_moment, settings.damping, act_order=settings.act_order
                )
        parts: list[list[Tensor]] = [[] for _ in weights]
        errors = [RelativeError() for _ in weights]
        for stack in one_by_one(weights) if feedback is None else stacks(weights):
            rows = torch.cat([weights[index][some] for index, some in stack]).float()
            blocks = round_to_blocks(rows, level, choose_blocks(rows, level, energy), feedback)
            if feedback is not None and second_moment is not None:
                blocks = descend(rows, level, blocks, second_moment, settings.damping)
            start = 0
            for index, some in stack:
                here = slice(start, start + some.stop - some.start)
                own = blocks.rows(here)
                parts[index].append(pack(level, own))
                errors[index].add(rows[here], widened(level, own))
                start = here.stop
        return [
            _Packed(torch.cat(some), level, one.value)
            for some, one in zip(parts, errors, strict=True)
        ]


@dataclass(frozen=True, slots=True)
class _Packed:
    """A matrix in blocks."""

    blocks: Tensor
    kind: BlockType
    error: float
    """Relative, of the weights."""

    parts: ClassVar[tuple[str, ...]] = ("blocks",)

    def linear(self, bias: Tensor | None) -> GgmlLinear:
        """Make a linear layer."""
        return GgmlLinear(self.blocks, self.kind, bias)

    def embedding(self, dtype: torch.dtype, output_scale: float) -> GgmlEmbedding:
        """Make an embedding."""
        return GgmlEmbedding(self.blocks, self.kind, dtype, output_scale)

    def figures(self) -> dict[str, float | int | str]:
        """Its type, bits of a weight, scales and all, and the error."""
        return {
            "type": self.kind.name,
            "bits": self.kind.bits,
            "relative_weight_error": round(self.error, 5),
        }
