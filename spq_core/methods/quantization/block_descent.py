"""Codes and steps of a rounded matrix fitted to each other, one at a time, each where the output error is least given all others.

Error feedback (`gptq`) decides a column once, before it knows what becomes of later ones. Here a column's codes are decided again with all
others in place, and a block's step and offset are the best for its codes (coordinate descent; for codes alone: QuantEase,
arXiv:2309.01885). With ΔW = W − Ŵ and R = ΔW H kept up to date, the best change of column j is R_j / H_jj, and that of a step d with basis u (the
block's codes) is ⟨u, R⟩ / uᵀ H u. No step of it raises tr(ΔW H ΔWᵀ).
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from spq_core.formats.ggml.coding import Blocks, widened
from spq_core.formats.ggml.types import BlockType
from spq_core.methods.quantization.block_grid import SMALLEST, nearest_value

SWEEPS = 2
"""A third gains less than half a percent (SmolLM2)."""


def descend(
    weight: Float[Tensor, "n columns"],
    kind: BlockType,
    blocks: Blocks,
    second_moment: Float[Tensor, "columns columns"],
    damping: float,
) -> Blocks:
    """Lower the output error of rounded rows.

    Args:
        damping: share of each input's energy added to it, as for the rounding before.
    """
    moment = second_moment.float()
    moment = moment + torch.diag(damping * moment.diagonal() + SMALLEST)
    descent = _Descent(weight.float(), kind, blocks, moment)
    for _ in range(SWEEPS):
        for start in range(0, weight.shape[1], kind.columns):
            descent.fit_block(start)
    return descent.blocks()


class _Descent:
    """Rows as they are now; columns are first, so that one is contiguous."""

    def __init__(self, weight: Tensor, kind: BlockType, blocks: Blocks, moment: Tensor) -> None:
        self.kind, self.moment, self.scales, self.minima = (
            kind,
            moment,
            blocks.scales,
            blocks.minima,
        )
        self.residual = ((weight - widened(kind, blocks)) @ moment).T.contiguous()
        self.codes = blocks.codes.T.float().contiguous()
        self.d = blocks.d.T.float().contiguous()
        self.offset = None if blocks.offset is None else blocks.offset.T.float().contiguous()
        values = torch.tensor(kind.values, device=weight.device, dtype=torch.float32)
        self.values = values if kind.values else None

    def blocks(self) -> Blocks:
        """What has become of them."""
        return Blocks(
            self.codes.T.short().contiguous(), self.d.T.half().contiguous(),
            None if self.offset is None else self.offset.T.half().contiguous(), self.scales, self.minima,
        )  # fmt: skip

    def fit_block(self, start: int) -> None:
        """The codes of a block, column by column, then its numbers."""
        here = slice(start, start + self.kind.columns)
        moment, residual = self.moment[here, here], self.residual[here].clone()
        before = self._values(start)
        steps = self._steps(start)
        safe = torch.where(steps == 0, torch.full_like(steps, SMALLEST), steps)
        for j in range(self.kind.columns):
            step, codes = safe[j], self.codes[start + j]
            wanted = codes + residual[j] / (moment[j, j] * step)
            new = self._nearest(wanted)
            residual.addr_(moment[:, j], (new - codes) * steps[j], alpha=-1)
            self.codes[start + j] = new
        for number, basis in self._numbers(start):
            self._fit_number(number, basis, moment, residual)
        self.residual.addmm_(self.moment[:, here], self._values(start) - before, alpha=-1)

    def _nearest(self, wanted: Tensor) -> Tensor:
        if self.values is not None:
            return nearest_value(wanted, self.values)
        return wanted.round_().clamp_(self.kind.low, self.kind.high)

    def _numbers(self, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        """What a block's numbers multiply, in the order in which they are fitted: (columns, n)."""
        block = start // self.kind.columns
        scales = self._by_column(self.scales, start)
        here = self.codes[start : start + self.kind.columns]
        yield self.d[block], here if scales is None else here * scales
        if self.offset is not None:
            minima = self._by_column(self.minima, start)
            yield self.offset[block], torch.ones_like(here) if minima is None else -minima

    def _fit_number(self, number: Tensor, basis: Tensor, moment: Tensor, residual: Tensor) -> None:
        """Its best value, as float16 has it; of a block whose basis is nothing it stays."""
        energy = (basis * (moment @ basis)).sum(dim=0)
        change = (basis * residual).sum(dim=0) / energy.clamp(min=1e-30)
        wanted = torch.where(energy > 0, number + change, number).half().float()
        if self.kind.offsets and self.kind.scale_high:
            wanted = wanted.clamp(min=0)  # neither has the other sign there
        moved = wanted - number
        number.copy_(wanted)
        residual.sub_(moment @ (basis * moved))

    def _by_column(self, groups: Tensor | None, start: int) -> Tensor | None:
        """Factors of a block's groups, by column: (columns, n)."""
        if groups is None:
            return None
        first = start // self.kind.group
        here = groups[:, first : first + self.kind.groups].T.float()
        return here.repeat_interleave(self.kind.group, dim=0)

    def _steps(self, start: int) -> Tensor:
        d, scales = self.d[start // self.kind.columns], self._by_column(self.scales, start)
        return d.expand(self.kind.columns, -1) if scales is None else d * scales

    def _values(self, start: int) -> Tensor:
        """The weights of a block: (columns, n)."""
        (d, codes), *offsets = self._numbers(start)
        found = d * codes
        for number, basis in offsets:
            found = found + number * basis
        return found
