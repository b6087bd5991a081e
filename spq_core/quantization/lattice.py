"""Rounding to a lattice whose steps follow from one number, for codes that are stored by entropy.

A code that takes its entropy to store, and no fixed width, has no largest value to scale by: the
steps are free. Minimising the expected loss at a given total entropy then asks that every weight
contribute the same loss (reverse water-filling). Row i counts g_i in the loss, and with error
feedback column j counts 1 / U_jj² (see `feedback`), so the step of weight (i, j) is
    sqrt(level / g_i) · U_jj,
and each weight adds level / 24 to the loss while steps are fine. A scalar quantizer with entropy
coding stays within 0.25 bit of the rate-distortion bound (Gish & Pierce 1968,
doi:10.1109/TIT.1968.1054193); 4-bit codes scaled by the largest weight of a group waste about one bit.

Both factors are stored as powers of 2^(1/16), one byte each. They are put on that grid before
anything is rounded to them, so storing them costs no accuracy.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int8
from torch import Tensor

from spq_core.allocation.curve import (
    LARGEST_CODE,
    column_floors,
    fitted,
    sample_rows,
)
from spq_core.layers.steps import Steps, on_grid
from spq_core.quantization.feedback import Feedback, output_error, round_with_feedback
from spq_core.quantization.row_blocks import row_blocks


class LatticeWeight(NamedTuple):
    """weight ≈ codes · row_steps[:, None] · column_steps[None, :]."""

    codes: Int8[Tensor, "out n_in"]
    steps: Steps
    relative_error: float
    """Root of the output error over the output's energy."""

    @property
    def clipped(self) -> float:
        """Share of codes at the end of their range, 0 to 1: at most so many weights were cut to fit."""
        return float((self.codes.abs() == LARGEST_CODE).float().mean())

    def widened(self) -> Float[Tensor, "out n_in"]:
        """The weight in float32."""
        return self.codes.float() * self.steps.row_steps[:, None] * self.steps.column_steps[None]


def choose_steps(
    weight: Float[Tensor, "out n_in"],
    feedback: Feedback,
    row_weights: Float[Tensor, " out"],
    level: float,
) -> Steps:
    """Put the steps that share the loss evenly on the grid.

    Where weights would take more than 110 steps they get larger ones: codes are 8 bits wide. That
    goes by column where it is so for many rows, else by row.

    Args:
        weight: in any float dtype. row_weights: g, positive. level: of the loss per weight, times
            24; positive.
    """
    rows = (level / row_weights.float()).sqrt()
    picked = sample_rows(weight)
    floors = column_floors(weight[picked].float().abs(), rows[picked])
    tiny = torch.finfo(torch.float32).tiny
    columns = torch.maximum(feedback.column_steps, floors).clamp(min=tiny)
    rows = torch.cat(
        [fitted(weight[at].float().abs(), rows[at], columns) for at in row_blocks(weight)]
    )
    smallest_row, row_exponents = on_grid(rows)
    smallest_column, column_exponents = on_grid(columns)
    base = float(torch.tensor(smallest_row * smallest_column, dtype=torch.float32))
    return Steps(base=base, rows=row_exponents, columns=column_exponents)


def round_to_lattice(
    weight: Float[Tensor, "out n_in"],
    feedback: Feedback,
    steps: Steps,
    second_moment: Float[Tensor, "n_in n_in"],
) -> LatticeWeight:
    """Round with error feedback to multiples of the steps, some rows at a time.

    Args:
        weight: in any float dtype; rows do not depend on each other, so float32 copies of a block
            of them are all the memory it takes.
        second_moment: what `relative_error` is measured with.
    """
    codes = torch.empty_like(weight, dtype=torch.int8)
    lost = energy = 0.0
    for at in row_blocks(weight):
        original = weight[at].float()
        some, rounded = _round_rows(original, feedback, steps._replace(rows=steps.rows[at]))
        codes[at] = some
        lost += float(output_error(original, rounded, second_moment).sum())
        energy += float(((original @ second_moment) * original).sum())
    relative = (max(lost, 0.0) / energy) ** 0.5 if energy > 0 else 0.0
    return LatticeWeight(codes, steps, relative)


def _round_rows(weight: Tensor, feedback: Feedback, steps: Steps) -> tuple[Tensor, Tensor]:
    """Codes, and what they stand for."""
    row_steps, column_steps = steps.row_steps, steps.column_steps.tolist()
    codes = torch.empty(weight.T.shape, dtype=torch.int8, device=weight.device)

    def round_column(column: int, values: Tensor) -> Tensor:
        step = row_steps * column_steps[column]
        code = (values / step).round_().clamp_(-LARGEST_CODE, LARGEST_CODE)
        codes[column] = code
        stored: Tensor = code * step
        return stored

    rounded = round_with_feedback(weight, feedback, round_column)
    return codes.T, rounded
