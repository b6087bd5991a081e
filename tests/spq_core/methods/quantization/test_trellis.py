"""Codes along a trellis: the best there are, and better than free ones at the same bytes."""

import numpy as np
import pytest
import torch

from spq_core.formats.range_coded.coding import decode, encode
from spq_core.formats.range_coded.spread import Spread
from spq_core.formats.range_coded.tables import EVEN, ODD, PRECISION, table_of, tables
from spq_core.formats.range_coded.trellis import SEGMENT, bit_price, transitions
from spq_core.methods.quantization import row_blocks
from spq_core.methods.quantization.along_trellis import Piece, TrellisChooser
from spq_core.methods.quantization.gptq import hessian_factor, output_error
from spq_core.methods.quantization.lattice import plan_lattice, round_to_lattice
from tests.spq_core.methods.quantization.test_gptq import correlated_inputs

SPREAD = 18


def every_sequence(wanted, states, state=0):
    """Each allowed sequence with its cost, as its coder would have it."""
    if len(wanted) == 0:
        yield (), 0.0
        return
    found, second = tables(), state & 1
    table = table_of(SPREAD, ODD if second else EVEN)
    for index in range(-4, 5):
        code = 2 * index - (int(np.sign(index)) if second else 0)
        bits = PRECISION - np.log2(found.shares[table, index + found.reach[table]])
        here = (wanted[0] - code) ** 2 + bit_price(states) * bits
        following = int(transitions(states)[state, index & 1])
        for rest, more in every_sequence(wanted[1:], states, following):
            yield (code, *rest), here + more


@pytest.mark.parametrize("seed", range(4))
def test_no_allowed_sequence_is_cheaper(seed):
    wanted = np.random.default_rng(seed).standard_normal(5) * 2
    every = dict(every_sequence(wanted, 8))
    spread = Spread(np.zeros(5, np.uint8), np.array([SPREAD], np.int8), np.zeros(1, np.int8))
    choose = TrellisChooser([Piece(0, 5, spread, torch.tensor([False]))], 8)
    found = tuple(int(code) for code in choose(0, torch.from_numpy(wanted).float()))
    assert every[found] == pytest.approx(min(every.values()))


def example(rows=512, columns=96):
    generator = torch.Generator().manual_seed(5)
    weight = torch.randn(rows, columns, generator=generator)
    return weight, correlated_inputs(columns, 4000), torch.rand(rows, generator=generator) + 0.2


def rounded(states, distortion, weight, second_moment, row_weights):
    feedback = hessian_factor(second_moment)
    plan = plan_lattice(weight, feedback, row_weights, distortion, states)
    (found,) = round_to_lattice([weight], feedback, [plan], second_moment)
    bits = 8 * encode(found.codes, found.steps, found.states).packed.numel() / weight.numel()
    error = row_weights * output_error(weight, found.dequantized(), second_moment)
    return found, bits, float(error.sum())


@pytest.mark.parametrize("distortion", [0.05, 0.5])
def test_a_trellis_saves_bits_at_the_same_error(distortion):
    weight, second_moment, row_weights = example()
    _, bits, error = rounded(1, distortion, weight, second_moment, row_weights)
    _, fewer, about = rounded(64, distortion, weight, second_moment, row_weights)
    saved = bits - fewer - 0.5 * np.log2(about / error)
    assert 0.1 < saved < 0.255


def test_codes_that_would_not_fit_are_free():
    weight, second_moment, row_weights = example()
    found, *_ = rounded(64, 1e-6, weight, second_moment, row_weights)
    assert found.states == 1
    fits, *_ = rounded(64, 0.05, weight, second_moment, row_weights)
    assert fits.states == 64
    assert int(fits.codes.abs().max()) <= 127


def test_a_column_that_does_not_fit_leaves_the_others_on_the_trellis():
    weight, second_moment, row_weights = example()
    weight[:, 7] *= 8
    found, bits, error = rounded(64, 0.01, weight, second_moment, row_weights)
    free, more, about = rounded(1, 0.01, weight, second_moment, row_weights)
    assert (found.states, free.states) == (64, 1)
    assert more - bits - 0.5 * np.log2(error / about) > 0.1
    coded = encode(found.codes, found.steps, found.states)
    assert torch.equal(decode(coded, *found.codes.shape)[0], found.codes)


def test_matrices_are_rounded_as_each_alone_however_many_rows_there_is_room_for(monkeypatch):
    """And every code can be read again, which it could not if it left the trellis."""
    weight, second_moment, _ = example(SEGMENT + 300, 16)
    other = example(200, 16)[0].flip(1)
    feedback = hessian_factor(second_moment)
    plans = [plan_lattice(one, feedback, torch.ones(len(one)), 0.05, 8) for one in (weight, other)]
    alone = [
        round_to_lattice([one], feedback, [own], second_moment)[0]
        for one, own in zip((weight, other), plans, strict=True)
    ]
    monkeypatch.setattr(row_blocks, "STACKED_WEIGHTS", 16 * (SEGMENT + 100))
    together = round_to_lattice([weight, other], feedback, plans, second_moment)
    for one, same in zip(together, alone, strict=True):
        assert (one.codes != same.codes).float().mean() < 0.01  # sums in another order
        coded = encode(one.codes, one.steps, one.states)
        assert torch.equal(decode(coded, *one.codes.shape)[0], one.codes)


@pytest.mark.parametrize("dead", ["a column", "a row", "all"])
def test_weights_that_are_all_zero_err_no_more_than_others(dead):
    """Zero is always allowed, but what comes before and after may be worth a step of error."""
    weight, second_moment, row_weights = example()
    weight[{"a column": (slice(None), 3), "a row": (5, slice(None)), "all": slice(None)}[dead]] = 0
    found, *_ = rounded(64, 0.05, weight, second_moment, row_weights)
    error = row_weights * output_error(weight, found.dequantized(), second_moment)
    assert error[5] <= 1.5 * error.mean()
    if dead == "all":
        assert not found.codes.any()
    coded = encode(found.codes, found.steps, found.states)
    assert torch.equal(decode(coded, *weight.shape)[0], found.codes)


def test_threads_change_nothing():
    weight, second_moment, row_weights = example(3 * SEGMENT, 8)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone, *_ = rounded(8, 0.05, weight, second_moment, row_weights)
        torch.set_num_threads(2)
        shared, *_ = rounded(8, 0.05, weight, second_moment, row_weights)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(alone.codes, shared.codes)
