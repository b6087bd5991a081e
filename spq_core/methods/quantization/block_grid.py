"""Steps and offsets of ggml's block types, chosen by the output error they leave, and codes on them.

A group of columns has one step, which may be negative where codes are not symmetric around zero (so that the lowest code serves
whichever end is longer), and in some types a real-valued offset. Both are found together: candidates for the step give codes,
weighted least squares gives the step and offset that suit those codes best, and the candidate with the least error stays. Weights are
E[x_j²], the diagonal of the second moment.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int16
from torch import Tensor

from spq_core.formats.ggml.coding import Blocks, grouped, steps_and_offsets
from spq_core.formats.ggml.types import BlockType
from spq_core.methods.quantization.gptq import Cells, CellsOf, HessianFactor, gptq_round

STRETCHES = tuple(step / 20 for step in range(-12, 13))
"""Codes by which candidates go beyond the range of codes, or stay within it."""
SHARES = tuple(1 + step / 40 for step in range(-6, 7))
"""The same where codes are not evenly spaced, as shares of the range."""
REFINED = 3
"""Times that codes and steps are fitted to each other in the end."""
SMALLEST = 1e-7
"""Below this a step would vanish in float16."""
LARGEST_MINIMUM = 63


class _Fit(NamedTuple):
    """A step and an offset for each group, and the error they leave."""

    step: Float[Tensor, "n groups"]
    offset: Float[Tensor, "n groups"]
    error: Float[Tensor, "n groups"]


def choose_blocks(
    weight: Float[Tensor, "n columns"],
    kind: BlockType,
    column_weights: Float[Tensor, " columns"] | None = None,
) -> Blocks:
    """Steps and offsets for rows that are whole blocks, with the nearest code of each weight.

    Args:
        column_weights: E[x_j²]; all alike if left out.
    """
    groups = grouped(weight.float(), kind.group)
    importance = torch.ones_like(weight[0]) if column_weights is None else column_weights.float()
    # A column that nothing arrives at must not leave its group without a measure.
    importance = (importance + 1e-6 * importance.mean() + 1e-30).view(1, -1, kind.group)
    fit = (
        _offset_fit(groups, importance, kind)
        if kind.offsets
        else _centred_fit(groups, importance, kind)
    )
    blocks = _stored(fit, kind)
    return blocks._replace(codes=_nearest_codes(weight, kind, blocks))


def round_to_blocks(
    weight: Float[Tensor, "n columns"],
    kind: BlockType,
    blocks: Blocks,
    feedback: HessianFactor | None,
) -> Blocks:
    """Codes on chosen steps: the nearest ones, or with error feedback (GPTQ)."""
    if feedback is None:
        return blocks
    step, offset = steps_and_offsets(kind, blocks)
    rest = weight if offset is None else weight - offset.repeat_interleave(kind.group, dim=1)
    values = torch.tensor(kind.values, device=weight.device, dtype=torch.float32)
    choose = (lambda _column, wanted: nearest_value(wanted, values)) if kind.values else None
    codes = gptq_round(rest, feedback, _cells_of(kind, step), choose=choose)
    return blocks._replace(codes=codes)


def _cells_of(kind: BlockType, step: Tensor) -> CellsOf:
    steps = _not_zero(step).T.contiguous()

    def of_columns(columns: Tensor) -> Cells:
        low = torch.full((len(columns), 1), float(kind.low), device=step.device)
        return Cells(steps[columns // kind.group], low, torch.full_like(low, float(kind.high)))

    return of_columns


def _not_zero(step: Tensor) -> Tensor:
    """A group whose step is zero has codes that say nothing; dividing by it must give numbers all the same."""
    return torch.where(step == 0, torch.full_like(step, SMALLEST), step)


def nearest_value(wanted: Tensor, values: Tensor) -> Tensor:
    """The nearest of ascending values."""
    middles = (values[1:] + values[:-1]) / 2
    return values[torch.bucketize(wanted.contiguous(), middles)]


def _codes(groups: Tensor, step: Tensor, offset: Tensor | None, kind: BlockType) -> Tensor:
    wanted = (groups if offset is None else groups - offset[..., None]) / _not_zero(step)[..., None]
    if kind.values:
        return nearest_value(
            wanted, torch.tensor(kind.values, device=step.device, dtype=torch.float32)
        )
    return wanted.round_().clamp_(kind.low, kind.high)


def _nearest_codes(weight: Tensor, kind: BlockType, blocks: Blocks) -> Int16[Tensor, "n columns"]:
    step, offset = steps_and_offsets(kind, blocks)
    return _codes(grouped(weight.float(), kind.group), step, offset, kind).flatten(1).short()


def _error(groups: Tensor, importance: Tensor, rounded: Tensor) -> Tensor:
    return ((groups - rounded).square() * importance).sum(dim=2)


# Without offsets


def _centred_fit(groups: Tensor, importance: Tensor, kind: BlockType) -> _Fit:
    """Both ends of the range may be the longer one's."""
    extreme = groups.gather(2, groups.abs().argmax(dim=2, keepdim=True))[..., 0]
    best = _Fit(extreme, torch.zeros_like(extreme), torch.full_like(extreme, torch.inf))
    for end in sorted({kind.low, kind.high}):
        ranges = (
            [end * share for share in SHARES] if kind.values else [end + one for one in STRETCHES]
        )
        for reach in ranges:
            candidate = extreme / reach
            best = _better(best, _refitted(groups, importance, candidate, kind))
    for _ in range(REFINED):
        best = _better(best, _refitted(groups, importance, best.step, kind))
    return best


def _refitted(groups: Tensor, importance: Tensor, step: Tensor, kind: BlockType) -> _Fit:
    """The best step for the codes that a step gives."""
    codes = _codes(groups, step, None, kind)
    weighed = codes * importance
    step = (weighed * groups).sum(dim=2) / (weighed * codes).sum(dim=2).clamp(min=1e-30)
    error = _error(groups, importance, codes * step[..., None])
    return _Fit(step, torch.zeros_like(step), error)


def _better(one: _Fit, other: _Fit) -> _Fit:
    lower = other.error < one.error
    return _Fit(*(torch.where(lower, new, old) for new, old in zip(other, one, strict=True)))


# With offsets


def _offset_fit(groups: Tensor, importance: Tensor, kind: BlockType) -> _Fit:
    """Codes from 0; in blocks of groups offsets are not above zero."""
    low, high = groups.amin(dim=2), groups.amax(dim=2)
    if kind.scale_high:
        low, high = low.clamp(max=0), high.clamp(min=0)
    span = (high - low).clamp(min=SMALLEST)
    best = _Fit(span / kind.high, low, torch.full_like(low, torch.inf))
    for stretch in STRETCHES:
        step = span / (kind.high + stretch * kind.high / 8)
        best = _better(best, _refitted_pair(groups, importance, step, low, kind))
    for _ in range(REFINED):
        best = _better(best, _refitted_pair(groups, importance, best.step, best.offset, kind))
    return best


def _refitted_pair(
    groups: Tensor, importance: Tensor, step: Tensor, offset: Tensor, kind: BlockType
) -> _Fit:
    """The best step and offset for the codes that a pair of them gives."""
    codes = _codes(groups, step, offset, kind)
    weighed = codes * importance
    total = importance.sum(dim=2)
    s_c, s_cc = weighed.sum(dim=2), (weighed * codes).sum(dim=2)
    s_w, s_cw = (importance * groups).sum(dim=2), (weighed * groups).sum(dim=2)
    determinant = total * s_cc - s_c.square()
    spread = (
        determinant > 1e-6 * total * s_cc
    )  # else all codes are one, and say nothing of the step
    safe = torch.where(spread, determinant, torch.ones_like(determinant))
    new_step = torch.where(spread, (total * s_cw - s_c * s_w) / safe, step)
    new_offset = (s_w - new_step * s_c) / total
    if kind.scale_high:  # neither may have the other sign there
        above = new_offset > 0
        new_step = torch.where(above, s_cw / s_cc.clamp(min=1e-30), new_step).clamp(min=0)
        new_offset = new_offset.clamp(max=0)
    rounded = codes * new_step[..., None] + new_offset[..., None]
    return _Fit(new_step, new_offset, _error(groups, importance, rounded))


# As they are stored


def _stored(fit: _Fit, kind: BlockType) -> Blocks:
    """Steps and offsets in float16, or as factors of such ones. Codes are still to come."""
    nothing = torch.empty(len(fit.step), 0)
    if not kind.scale_high:
        return Blocks(nothing, fit.step.half(), fit.offset.half() if kind.offsets else None)
    step = grouped(fit.step, kind.groups)
    d, scales = _factored(step, kind.scale_low, kind.scale_high)
    if not kind.offsets:
        return Blocks(nothing, d, scales=scales)
    minimum = -grouped(fit.offset, kind.groups)
    m, minima = _factored(minimum, 0, LARGEST_MINIMUM)
    return Blocks(nothing, d, m, scales, minima)


def _factored(steps: Tensor, low: int, high: int) -> tuple[Tensor, Tensor]:
    """Each block's number, and the integers that make its groups' of it."""
    extreme = steps.gather(2, steps.abs().argmax(dim=2, keepdim=True))[..., 0]
    end = low if low else high
    d = (extreme / end).half()
    factors = (steps / _not_zero(d.float())[..., None]).round().clamp(low, high)
    return d, factors.flatten(1).short()
