"""Codes and steps fitted to each other: never a larger output error than before, and all that a type may have."""

import pytest
import torch

from spq_core.formats.ggml.coding import pack, unpack, widened
from spq_core.formats.ggml.types import BLOCK_TYPES
from spq_core.methods.quantization.block_descent import descend
from spq_core.methods.quantization.block_grid import choose_blocks, round_to_blocks
from spq_core.methods.quantization.gptq import hessian_factor
from tests.spq_core.methods.quantization.test_block_grid import second_moment, weight

KINDS = [pytest.param(kind, id=kind.name) for kind in BLOCK_TYPES]
DAMPING = 0.01


def lost(rows, kind, blocks, moment):
    difference = (rows - widened(kind, blocks)).double()
    damped = moment.double() + torch.diag(DAMPING * moment.diagonal().double())
    return ((difference @ damped) * difference).sum(dim=1)


@pytest.mark.parametrize("kind", KINDS)
def test_every_row_loses_less_than_after_error_feedback(kind):
    rows, moment = weight(), second_moment()
    chosen = choose_blocks(rows, kind, moment.diagonal())
    fed = round_to_blocks(rows, kind, chosen, hessian_factor(moment, DAMPING))
    found = descend(rows, kind, fed, moment, DAMPING)
    before, after = (lost(rows, kind, one, moment) for one in (fed, found))
    assert (after <= before * (1 + 1e-4)).all()
    assert after.sum() < 0.985 * before.sum()


@pytest.mark.parametrize("kind", KINDS)
def test_what_comes_out_is_stored_without_loss(kind):
    rows, moment = weight(), second_moment()
    found = descend(rows, kind, choose_blocks(rows, kind), moment, DAMPING)
    assert torch.equal(widened(kind, unpack(kind, pack(kind, found))), widened(kind, found))
    if kind.offsets and kind.scale_high:
        assert (found.d >= 0).all()
        assert (found.offset >= 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_matrix_that_is_on_the_grid_stays(kind):
    on_grid = widened(kind, choose_blocks(weight(), kind))
    blocks = choose_blocks(on_grid, kind)
    found = descend(on_grid, kind, blocks, second_moment(), DAMPING)
    moment = second_moment()
    assert (lost(on_grid, kind, found, moment) <= lost(on_grid, kind, blocks, moment) + 1e-9).all()


def test_rows_of_zeros_stay_zero_and_nothing_becomes_nan():
    for kind in BLOCK_TYPES:
        rows = torch.zeros(2, 512)
        found = descend(rows, kind, choose_blocks(rows, kind), torch.zeros(512, 512), DAMPING)
        assert (widened(kind, found) == 0).all()
