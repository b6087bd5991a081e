"""Rounding to a lattice whose steps follow from one number, for codes that are stored by entropy.

A code that takes its entropy to store, and no fixed width, has no largest value to scale by: the
steps are free. Minimising the expected loss at a given total entropy then asks that every weight
contribute the same loss (reverse water-filling). Row i counts g_i in the loss, and with error
feedback column j counts D_j (see `gptq`), so the step of weight (i, j) is
    sqrt(distortion / (g_i D_j)),
and each weight adds distortion / 24 to the loss while steps are fine. A scalar quantizer with entropy
coding stays within 0.25 bit of the rate-distortion bound (Gish & Pierce 1968,
doi:10.1109/TIT.1968.1054193); 4-bit codes scaled by the largest weight of a group waste about one bit.

Both factors are stored as powers of 2^(1/16), one byte each. They are put on that grid before
anything is rounded to them, so storing them costs no accuracy.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int8
from torch import Tensor

from spq_core.formats.lattice.steps import Steps, on_grid
from spq_core.formats.range_coded.spread import TRELLIS_SPACING, Spread, centres_of, spread_of
from spq_core.formats.range_coded.trellis import MOST_OCTAVES_COARSER, SCALAR, SEGMENT, finer
from spq_core.methods.quantization.along_trellis import Piece, TrellisChooser
from spq_core.methods.quantization.gptq import (
    Cells,
    CellsOf,
    HessianFactor,
    gptq_round,
    output_error,
)
from spq_core.methods.quantization.row_blocks import row_blocks, stacks
from spq_core.planning.curve import (
    LARGEST_CODE,
    column_floors,
    factors_of,
    fitted,
    sample_rows,
    too_wide,
)

ERROR_ROWS = 256
SPREAD_ROWS = 512
LEAST_SQUARE = 2.0**-12


class LatticeWeight(NamedTuple):
    """weight ≈ codes · row_steps[:, None] · column_steps[None, :]."""

    codes: Int8[Tensor, "out n_in"]
    steps: Steps
    states: int
    """Of the trellis that the codes of each column follow; 1 where each is free."""
    relative_error: float
    """Root of the output error over the output's energy, of up to 256 rows, evenly spaced."""

    @property
    def clipped(self) -> float:
        """Share of codes at the end of their range, 0 to 1: at most so many weights were cut to fit."""
        return float((self.codes.abs() == LARGEST_CODE).float().mean())

    def dequantized(self) -> Float[Tensor, "out n_in"]:
        """The weight in float32."""
        return self.codes.float() * self.steps.row_steps[:, None] * self.steps.column_steps[None]


def choose_steps(
    weight: Float[Tensor, "out n_in"],
    feedback: HessianFactor,
    row_weights: Float[Tensor, " out"],
    distortion: float,
    shares: Float[Tensor, " n_in"] | float = 1.0,
) -> Steps:
    """Put the steps that share the loss evenly on the grid.

    Where weights would take more than 110 steps they get larger ones: codes are 8 bits wide. That
    goes by column where it is so for many rows, else by row.

    Args:
        weight: in any float dtype. row_weights: g, positive. distortion: of the loss per weight, times
            24; positive. shares: of its step that each column gets.
    """
    rows = (distortion / row_weights.float()).sqrt()
    picked = sample_rows(weight)
    floors = column_floors(weight[picked].float().abs(), rows[picked])
    tiny = torch.finfo(torch.float32).tiny
    columns = torch.maximum(feedback.column_steps * shares, floors).clamp(min=tiny)
    rows = torch.cat(
        [fitted(weight[at].float().abs(), rows[at], columns) for at in row_blocks(weight)]
    )
    smallest_row, row_exponents = on_grid(rows)
    smallest_column, column_exponents = on_grid(columns)
    base = float(torch.tensor(smallest_row * smallest_column, dtype=torch.float32))
    return Steps(base=base, rows=row_exponents, columns=column_exponents)


class LatticePlan(NamedTuple):
    """What a matrix will be rounded to."""

    steps: Steps
    states: int
    """Of the trellis; 1 for none."""
    free: Bool[Tensor, " n_in"]
    """Columns that follow no trellis."""


def plan_lattice(
    weight: Float[Tensor, "out n_in"],
    feedback: HessianFactor,
    row_weights: Float[Tensor, " out"],
    distortion: float,
    states: int,
) -> LatticePlan:
    """Steps for a distortion, along a trellis where codes fit into 8 bits: its steps are finer, for the same bits."""
    free = torch.ones_like(feedback.column_steps, dtype=torch.bool)
    if states != SCALAR:
        share = finer(1.0, states) ** 0.5
        rows = (distortion / row_weights.float()).sqrt()
        peaks = [
            (weight[at].float().abs() / rows[at, None]).amax(dim=0) for at in row_blocks(weight)
        ]
        free = too_wide(torch.stack(peaks).amax(dim=0), feedback.column_steps * share)
        shares = torch.where(free, 1.0, share)
        steps = choose_steps(weight, feedback, row_weights, distortion, shares)
        wanted = rows.double().log2().mean()
        wanted += (feedback.column_steps * shares).double().log2().mean()
        reached = steps.row_steps.double().log2().mean() + steps.column_steps.double().log2().mean()
        if not bool(free.all()) and float(reached - wanted) < MOST_OCTAVES_COARSER:
            return LatticePlan(steps, states, free)
    steps = choose_steps(weight, feedback, row_weights, distortion)
    return LatticePlan(steps, SCALAR, torch.ones_like(free))


def round_to_lattice(
    weights: Sequence[Float[Tensor, "out n_in"]],
    feedback: HessianFactor,
    plans: Sequence[LatticePlan],
    second_moment: Float[Tensor, "n_in n_in"],
) -> list[LatticeWeight]:
    """Round matrices that share an input with error feedback to multiples of their steps.

    Args:
        weights: in any float dtype; they are rounded together where memory allows.
        plans: of one number of states.
        second_moment: what `relative_error` is measured with.
    """
    (states,) = {plan.states for plan in plans}
    steps = [plan.steps for plan in plans]
    codes = [torch.empty_like(weight, dtype=torch.int8) for weight in weights]
    spreads = [
        None if states == SCALAR else expected_spread(weight, plan)
        for weight, plan in zip(weights, plans, strict=True)
    ]
    for stack in stacks(weights, 1 if states == SCALAR else SEGMENT):
        rows = torch.cat([weights[index][some] for index, some in stack])
        own = [steps[index]._replace(rows=steps[index].rows[some]) for index, some in stack]
        choose = None if states == SCALAR else _along(stack, spreads, plans)
        found = gptq_round(rows, feedback, _cells_of(own), dtype=torch.int8, choose=choose)
        heights = [some.stop - some.start for _, some in stack]
        for (index, some), part in zip(stack, torch.split(found, heights), strict=True):
            codes[index][some] = part
    return [
        LatticeWeight(part, one, states, _relative_error(weight, part, one, second_moment))
        for weight, part, one in zip(weights, codes, steps, strict=True)
    ]


def _along(
    stack: Sequence[tuple[int, slice]],
    spreads: Sequence[Spread | None],
    plans: Sequence[LatticePlan],
) -> TrellisChooser:
    pieces, at = [], 0
    for index, some in stack:
        spread = spreads[index]
        assert spread is not None  # noqa: S101 - all matrices follow a trellis, or none
        height = some.stop - some.start
        own = spread._replace(rows=spread.rows[some])
        pieces.append(Piece(at, at + height, own, plans[index].free))
        at += height
    return TrellisChooser(pieces, plans[0].states)


def expected_spread(weight: Float[Tensor, "out n_in"], plan: LatticePlan) -> Spread:
    """What the spread of codes will be, of weights that are not rounded yet; columns by some rows."""
    steps = plan.steps
    columns = steps.column_steps * torch.where(plan.free, 1.0, TRELLIS_SPACING)
    picked = sample_rows(weight, SPREAD_ROWS)
    some = weight[picked].float() / steps.row_steps[picked, None] / columns
    centres = centres_of(some.double().mean(0).cpu().numpy())
    off = torch.from_numpy(centres).to(weight.device).float()
    by_column = factors_of((some - off).square())[1].clamp(min=torch.finfo(torch.float32).tiny)
    all_rows = torch.cat(
        [
            (weight[at].float() / steps.row_steps[at, None] / columns - off)
            .square().div(by_column).mean(1).clamp(min=LEAST_SQUARE)
            for at in row_blocks(weight)
        ]
    )  # fmt: skip
    return spread_of(all_rows.double().cpu().numpy(), by_column.double().cpu().numpy(), centres)


def _cells_of(steps: Sequence[Steps]) -> CellsOf:
    """Cells of matrices on top of each other."""
    rows, columns = [one.row_steps for one in steps], [one.column_steps for one in steps]

    def cells_of(some: Tensor) -> Cells:
        parts = [steep[some, None] * own[None] for own, steep in zip(rows, columns, strict=True)]
        wide = torch.cat(parts, dim=1)
        last = wide.new_full((len(some), 1), LARGEST_CODE)
        return Cells(wide, -last, last)

    return cells_of


def _relative_error(weight: Tensor, codes: Tensor, steps: Steps, second_moment: Tensor) -> float:
    """Of some rows: of all, it would take as long as the rounding."""
    picked = sample_rows(weight, ERROR_ROWS)
    original = weight[picked].float()
    rounded = codes[picked].float() * steps.row_steps[picked, None] * steps.column_steps
    lost = float(output_error(original, rounded, second_moment).sum())
    energy = float(output_error(original, torch.zeros_like(original), second_moment).sum())
    return (max(lost, 0.0) / energy) ** 0.5 if energy > 0 else 0.0
