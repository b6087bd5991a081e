"""Codes come back as they were, take little more than they must, and bytes that are not theirs hurt nobody."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spq_core.errors import ArtifactError
from spq_core.formats.lattice.steps import Steps
from spq_core.formats.range_coded import coding, tables
from spq_core.formats.range_coded.coding import RangeCoded, decode, encode
from spq_core.formats.range_coded.trellis import SEGMENT, transitions, ways_in

STATES = (1, 8, 16, 32, 64)


def even_steps(rows, columns):
    return Steps(1.0, torch.zeros(rows, dtype=torch.uint8), torch.zeros(columns, dtype=torch.uint8))


def allowed(indices, states):
    """Codes of these indices, (rows, columns), along the trellis that each column follows."""
    nexts = transitions(states)
    codes = np.array(indices)
    if states == 1:
        return torch.from_numpy(codes).char()
    for column in range(codes.shape[1]):
        state = 0
        for row in range(codes.shape[0]):
            if row % SEGMENT == 0:
                state = 0
            index = int(indices[row, column])
            codes[row, column] = 2 * index - (np.sign(index) if state & 1 else 0)
            state = nexts[state, index & 1]
    return torch.from_numpy(codes).char()


def bits_of(coded, codes):
    return 8 * coded.packed.numel() / codes.numel()


@given(
    rows=st.integers(1, 20),
    columns=st.integers(1, 30),
    largest=st.integers(0, 63),
    centre=st.integers(-40, 40),
    states=st.sampled_from(STATES),
    seed=st.integers(0, 2**31),
)
def test_coding_loses_nothing(rows, columns, largest, centre, states, seed):
    random = np.random.default_rng(seed)
    indices = np.clip(random.integers(-largest, largest + 1, (rows, columns)) + centre, -63, 63)
    codes = allowed(indices, states)
    steps = Steps(
        0.5,
        *(torch.from_numpy(random.integers(0, 256, n).astype(np.uint8)) for n in (rows, columns)),
    )
    back, found = decode(encode(codes, steps, states), rows, columns)
    assert torch.equal(back, codes)
    assert torch.equal(found.rows, steps.rows)
    assert torch.equal(found.columns, steps.columns)
    assert found.base == 0.5


@pytest.mark.parametrize("states", [1, 64])
def test_columns_that_are_cut_into_segments_and_parts_come_back(states, monkeypatch):
    random = np.random.default_rng(1)
    codes = allowed(random.integers(-9, 10, (2 * SEGMENT + 77, 13)), states)
    steps = even_steps(*codes.shape)
    whole = encode(codes, steps, states)
    assert torch.equal(decode(whole, *codes.shape)[0], codes)
    monkeypatch.setattr(coding, "PART_CODES", 4 * len(codes))
    pieces = encode(codes, steps, states)
    assert len(pieces.packed) > len(whole.packed)
    assert torch.equal(decode(pieces, *codes.shape)[0], codes)


def test_codes_far_from_all_others_are_escaped():
    codes = torch.zeros(300, 40, dtype=torch.int8)
    codes[7, 3], codes[250, 39], codes[9, 9] = 127, -127, -1
    coded = encode(codes, even_steps(300, 40))
    assert torch.equal(decode(coded, 300, 40)[0], codes)


@pytest.mark.parametrize("spread", [0.2, 0.3, 1.0, 3.0, 12.0, 30.0])
def test_codes_take_little_more_than_their_entropy(spread):
    """Of normal values, which no table in the file describes."""
    values = np.random.default_rng(6).standard_normal((1024, 576)) * spread
    codes = torch.from_numpy(np.rint(values).clip(-127, 127)).char()
    counts = torch.bincount(codes.flatten().long() + 127).double()
    shares = counts[counts > 0] / codes.numel()
    entropy = float(-(shares * shares.log2()).sum())
    assert entropy < bits_of(encode(codes, even_steps(1024, 576)), codes) < entropy + 0.03


def test_rows_and_columns_of_unequal_spread_and_columns_aside_cost_no_more():
    random = np.random.default_rng(7)
    plain = random.standard_normal((1024, 576)) * 4
    one = torch.from_numpy(np.rint(plain)).char()
    uneven = (
        plain
        * np.exp(random.standard_normal((1024, 1)) / 2)
        * np.exp(random.standard_normal(576) / 2)
    )
    aside = plain + random.integers(-40, 41, 576)
    bits = bits_of(encode(one, even_steps(1024, 576)), one)
    for values in (uneven, aside):
        codes = torch.from_numpy(np.rint(values).clip(-127, 127)).char()
        assert bits_of(encode(codes, even_steps(1024, 576)), codes) < bits + 0.1


@pytest.mark.parametrize("states", [1, 64])
def test_damaged_bytes_are_refused(states):
    codes = allowed(np.random.default_rng(8).integers(-9, 10, (40, 50)), states)
    coded = encode(codes, even_steps(40, 50), states)
    packed = coded.packed

    def refused(bytes_, words, shape=(40, 50)):
        with pytest.raises(ArtifactError, match=words):
            decode(RangeCoded(bytes_, 1.0, states), *shape)

    refused(packed[:-2], "lengths of a matrix's parts")
    refused(packed[:3], "cannot hold")
    refused(torch.full_like(packed, 255), "lengths of a matrix's parts")
    refused(packed, "cannot|not|lengths", (4_000, 5_000))
    refused(packed, "take .* bytes", (50, 41))
    side = packed.clone()
    side[8:40] = 7
    refused(side, "steps of a matrix cannot be decoded")
    short = packed[:-2].clone()
    short[4:8] = torch.from_numpy(
        (np.frombuffer(packed[4:8].numpy().tobytes(), "<u4") - 1).view(np.uint8).copy()
    )
    refused(short, "codes of a matrix cannot be decoded")


@given(st.integers(0, 2**31), st.sampled_from([1, 64]))
def test_bytes_that_were_tampered_with_never_hurt(seed, states):
    random = np.random.default_rng(seed)
    codes = allowed(random.integers(-5, 6, (33, 21)), states)
    packed = encode(codes, even_steps(33, 21), states).packed.clone()
    for place in random.integers(8, len(packed), 5):
        packed[place] = int(random.integers(256))
    try:
        back, _ = decode(RangeCoded(packed, 1.0, states), 33, 21)
    except ArtifactError:
        return
    assert back.shape == codes.shape


def test_tables_are_whole_and_the_same_everywhere(monkeypatch):
    found = tables.tables()
    assert (found.shares.sum(axis=1, dtype=int) == tables.TOTAL).all()
    for shares, reach in zip(found.shares, found.reach, strict=True):
        assert (shares[: 2 * reach + 2] > 0).all()
        assert (shares[2 * reach + 2 :] == 0).all()
    tables.tables.cache_clear()
    erf = tables.math.erf
    monkeypatch.setattr(tables.math, "erf", lambda x: erf(erf(x)))
    with pytest.raises(ArithmeticError, match="could not|not that of others"):
        tables.tables()
    monkeypatch.undo()
    tables.tables.cache_clear()


@pytest.mark.parametrize("states", [8, 16, 32, 64])
def test_the_machine_is_a_good_code(states):
    """Each state has two ways in and two out, to different states, and every state can be reached from every other."""
    nexts, ways = transitions(states), ways_in(states)
    assert (nexts[:, 0] != nexts[:, 1]).all()
    for state in range(states):
        for before, which in ((ways[0, state], ways[1, state]), (ways[2, state], ways[3, state])):
            assert nexts[before, which & 1] == state
            assert which >> 1 == before & 1
    reached = {0}
    for _ in range(states.bit_length()):
        reached |= {int(after) for state in reached for after in nexts[state]}
    assert reached == set(range(states))
