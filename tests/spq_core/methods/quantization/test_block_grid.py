"""Steps, offsets and codes of ggml's types: never worse than simpler choices of them."""

import gguf
import pytest
import torch
from gguf.quants import quantize

from spq_core.formats.ggml.coding import pack, unpack, widened
from spq_core.formats.ggml.types import BLOCK_TYPES, block_type
from spq_core.methods.quantization.block_grid import choose_blocks, round_to_blocks
from spq_core.methods.quantization.gptq import hessian_factor, output_error

ROWS, COLUMNS = 24, 512
KINDS = [pytest.param(kind, id=kind.name) for kind in BLOCK_TYPES]
GGUF_PYTHON = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")
"""Types that the gguf package can make itself, plainly."""


def weight(seed=0):
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(ROWS, COLUMNS, generator=generator) * 0.05
    outliers = torch.rand(ROWS, COLUMNS, generator=generator) < 0.01
    return torch.where(outliers, 4 * drawn, drawn)


def second_moment():
    generator = torch.Generator().manual_seed(9)
    mixing = torch.randn(COLUMNS, COLUMNS, generator=generator) / 10 + torch.diag(
        torch.rand(COLUMNS, generator=generator) ** 2 + 0.05
    )
    return mixing @ mixing.T


def error(rounded, wanted, importance):
    return float(((rounded - wanted).square() * importance).sum())


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_chosen_is_what_is_stored(kind):
    blocks = choose_blocks(weight(), kind)
    assert torch.equal(widened(kind, unpack(kind, pack(kind, blocks))), widened(kind, blocks))


@pytest.mark.parametrize("name", GGUF_PYTHON)
def test_steps_by_error_beat_steps_by_range(name):
    kind, rows = block_type(name), weight()
    importance = second_moment().diagonal()
    plain = torch.from_numpy(quantize(rows.numpy(), gguf.GGMLQuantizationType(kind.number)))
    theirs = error(widened(kind, unpack(kind, plain)), rows, importance)
    ours = error(widened(kind, choose_blocks(rows, kind, importance)), rows, importance)
    assert ours < 0.95 * theirs


@pytest.mark.parametrize("kind", KINDS)
def test_importance_moves_error_to_where_nothing_arrives(kind):
    rows, importance = weight(), torch.ones(COLUMNS)
    importance[::2] = 0.01
    weighed = widened(kind, choose_blocks(rows, kind, importance))
    evenly = widened(kind, choose_blocks(rows, kind))
    assert error(weighed, rows, importance) <= error(evenly, rows, importance)


@pytest.mark.parametrize("kind", KINDS)
def test_feedback_lowers_the_output_error_with_the_same_steps(kind):
    rows, moment = weight(), second_moment()
    blocks = choose_blocks(rows, kind, moment.diagonal())
    fed = round_to_blocks(rows, kind, blocks, hessian_factor(moment))
    assert torch.equal(fed.d, blocks.d)
    assert fed.codes.min() >= kind.low
    assert fed.codes.max() <= kind.high
    if kind.values:
        assert set(fed.codes.flatten().tolist()) <= set(kind.values)
    lost = [float(output_error(rows, widened(kind, one), moment).sum()) for one in (blocks, fed)]
    assert lost[1] < 0.9 * lost[0]


@pytest.mark.parametrize("kind", KINDS)
def test_groups_of_zeros_and_of_one_value_come_back(kind):
    rows = torch.zeros(3, 512)
    rows[1] = 0.5
    rows[2, 100] = -0.25
    for column_weights in (None, torch.zeros(512)):
        blocks = choose_blocks(rows, kind, column_weights)
        found = widened(kind, blocks)
        assert torch.isfinite(found).all()
        assert (found[0] == 0).all()
        torch.testing.assert_close(found[1], rows[1], rtol=0.02, atol=0.0)
        nearest_to_zero = 0.25 / 113 if kind.values else 1e-3  # the IQ4 types have no zero
        torch.testing.assert_close(found[2], rows[2], rtol=0.02, atol=nearest_to_zero)
