import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spq_core.errors import ArtifactError
from spq_core.formats.entropy import coding as coded_module
from spq_core.formats.entropy.coding import decode, encode
from spq_core.formats.entropy.linear import LatticeLinear
from spq_core.formats.entropy.steps import CodedWeight, Steps
from spq_core.formats.slicing import float_weight
from spq_core.methods.quantization import row_blocks
from spq_core.methods.quantization.gptq import hessian_factor, output_error
from spq_core.methods.quantization.grid import choose_grid, round_to_grid
from spq_core.methods.quantization.lattice import choose_steps, round_to_lattice
from spq_core.planning.curve import curve_of
from tests.spq_core.methods.quantization.test_gptq import correlated_inputs, damped


def example(rows=96, columns=64):
    generator = torch.Generator().manual_seed(5)
    weight = torch.randn(rows, columns, generator=generator)
    return weight, correlated_inputs(columns, 2000), torch.rand(rows, generator=generator) + 0.2


def rounded_at(level, weight, second_moment, row_weights):
    feedback = hessian_factor(second_moment)
    steps = choose_steps(weight, feedback, row_weights, level)
    return round_to_lattice([weight], feedback, [steps], second_moment)[0]


def test_fine_lattices_cost_a_twelfth_of_their_level_per_weight():
    weight, second_moment, row_weights = example()
    level = 1e-2
    lattice = rounded_at(level, weight, second_moment, row_weights)
    cost = (
        row_weights * output_error(weight, lattice.dequantized(), damped(second_moment).float())
    ).sum()
    assert float(cost) / weight.numel() == pytest.approx(level / 12, rel=0.1)


def test_a_lattice_beats_a_grid_of_the_same_bytes_by_far():
    weight, second_moment, row_weights = example(256)
    grid = choose_grid(weight, 4, 32, symmetric=False)
    bits = 4 + 24 / 32
    by_grid = round_to_grid(weight, grid, hessian_factor(second_moment)).dequantized()
    level = curve_of(
        weight, row_weights, hessian_factor(second_moment).column_steps
    ).distortion_with_bits(bits)
    lattice = rounded_at(level, weight, second_moment, row_weights)
    stored = encode(lattice.codes, lattice.steps).packed.numel() * 8 / weight.numel()
    assert stored < bits + 0.3  # 320 bytes of steps weigh more here than in a real matrix
    ours, theirs = (
        float((row_weights * output_error(weight, changed, second_moment)).sum())
        for changed in (lattice.dequantized(), by_grid)
    )
    assert ours < 0.5 * theirs


def test_weights_far_above_the_rest_keep_their_value():
    weight, second_moment, row_weights = example()
    weight[3, 7], weight[:, 9] = 80.0, weight[:, 9] * 50
    lattice = rounded_at(1e-3, weight, second_moment, row_weights)
    assert lattice.codes.abs().max() <= 127
    assert lattice.relative_error < 0.02


@pytest.mark.parametrize("stacked", [64 << 20, 64 * 100, 64 * 33])
def test_matrices_that_share_an_input_are_rounded_as_each_alone(monkeypatch, stacked):
    """However many rows memory lets them be rounded at once."""
    first, second_moment, row_weights = example(96)
    other = example(40)[0].flip(1)
    feedback = hessian_factor(second_moment)
    steps = [
        choose_steps(weight, feedback, row_weights[: len(weight)], level)
        for weight, level in ((first, 1e-2), (other, 1e-3))
    ]
    alone = [
        round_to_lattice([weight], feedback, [own], second_moment)[0]
        for weight, own in zip((first, other), steps, strict=True)
    ]
    monkeypatch.setattr(row_blocks, "STACKED_WEIGHTS", stacked)
    together = round_to_lattice([first, other], feedback, steps, second_moment)
    for one, same in zip(together, alone, strict=True):
        assert (one.codes != same.codes).float().mean() < 1e-3  # sums in another order
        assert one.relative_error == pytest.approx(same.relative_error, rel=1e-3)


@given(st.integers(1, 20), st.integers(1, 30), st.integers(0, 127), st.integers(0, 2**31))
def test_coding_loses_nothing(rows, columns, largest, seed):
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(-largest, largest + 1, (rows, columns), generator=generator)
    steps = Steps(
        0.5,
        torch.randint(0, 256, (rows,), generator=generator).to(torch.uint8),
        torch.randint(0, 256, (columns,), generator=generator).to(torch.uint8),
    )
    back, found = decode(encode(codes.to(torch.int8), steps), rows, columns)
    assert torch.equal(back.long(), codes)
    assert torch.equal(found.rows, steps.rows)
    assert torch.equal(found.columns, steps.columns)
    assert found.base == 0.5


def test_coding_takes_little_more_than_the_entropy():
    generator = torch.Generator().manual_seed(6)
    codes = (torch.randn(512, 576, generator=generator) * 3).round().to(torch.int8)
    counts = torch.bincount(codes.flatten().long() + 127).double()
    shares = counts[counts > 0] / codes.numel()
    entropy = float(-(shares * shares.log2()).sum())
    steps = Steps(1.0, torch.zeros(512, dtype=torch.uint8), torch.zeros(576, dtype=torch.uint8))
    bits = 8 * encode(codes, steps).packed.numel() / codes.numel()
    assert entropy < bits < entropy + 0.09


def test_large_matrices_are_coded_in_pieces(monkeypatch):
    """In threads; the pieces are one stream, hardly longer than one written at once."""
    generator = torch.Generator().manual_seed(9)
    codes = (torch.randn(700, 600, generator=generator) * 9).round().to(torch.int8)
    steps = Steps(1.0, torch.zeros(700, dtype=torch.uint8), torch.zeros(600, dtype=torch.uint8))
    whole = encode(codes, steps)
    monkeypatch.setattr(coded_module, "PIECE_BLOCKS", 2)
    pieces = encode(codes, steps)
    assert len(whole.packed) < len(pieces.packed) < 1.001 * len(whole.packed)
    assert torch.equal(decode(pieces, 700, 600)[0], codes)


def test_the_shorter_order_is_taken():
    """Rows of very unequal spread are stored by row, columns by column."""
    generator = torch.Generator().manual_seed(10)
    spread = torch.logspace(-0.3, 1.5, 300)[:, None]
    codes = (torch.randn(300, 400, generator=generator) * spread).round().to(torch.int8)
    rows, columns = torch.arange(300).clamp(max=255).to(torch.uint8), torch.zeros(400).byte()
    assert encode(codes, Steps(1.0, rows, columns)).order == "rows"
    transposed = encode(codes.T.contiguous(), Steps(1.0, torch.zeros(400).byte(), rows))
    assert transposed.order == "columns"


def test_damaged_codes_are_refused():
    codes = torch.randint(-9, 10, (40, 50), generator=torch.Generator().manual_seed(8)).char()
    steps = Steps(1.0, torch.zeros(40, dtype=torch.uint8), torch.zeros(50, dtype=torch.uint8))
    coded = encode(codes, steps)
    cut = CodedWeight(coded.packed[:-20], coded.base, coded.order)
    broken = CodedWeight(torch.full_like(coded.packed, 255), coded.base, coded.order)
    for damaged, message in [(cut, "codes end after"), (broken, "cannot be decoded")]:
        with pytest.raises(ArtifactError, match=message):
            decode(damaged, 40, 50)
    with pytest.raises(ArtifactError, match="cannot hold"):
        decode(coded, 40_000, 50_000)


@pytest.mark.parametrize("tokens", [1, 40])
def test_a_layer_of_lattice_codes_multiplies_by_the_widened_weight(tokens):
    weight, second_moment, row_weights = example()
    lattice = rounded_at(1e-2, weight, second_moment, row_weights)
    layer = LatticeLinear(lattice.codes, lattice.steps, None, encode(lattice.codes, lattice.steps))
    torch.testing.assert_close(float_weight(layer), lattice.dequantized())
    x = torch.randn(tokens, 64, generator=torch.Generator().manual_seed(7))
    expected = x @ lattice.dequantized().T
    assert (layer(x) - expected).norm() < 0.01 * expected.norm()
    assert layer.to(torch.bfloat16).input_scale.dtype == torch.float32


@pytest.mark.parametrize("apart", [1e3, 1e6, 1e9])
def test_rows_that_are_far_apart_clip_nothing(apart):
    """Steps have a byte a row: what does not fit on their grid makes small rows coarser, never large ones clip."""
    weight, second_moment, _ = example()
    weight = weight * torch.cat([torch.full((48,), apart), torch.ones(48)])[:, None]
    row_weights = torch.cat([torch.full((48,), apart**-2.0), torch.ones(48)])
    rounded = rounded_at(1e-4, weight, second_moment, row_weights)
    large = slice(0, 48)
    error = (rounded.dequantized() - weight)[large].abs().max() / weight[large].abs().max()
    assert float(error) < 0.02
    assert rounded.clipped < 0.001
