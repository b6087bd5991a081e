import pytest
import torch

from spq_core.formats.range_coded.coding import encode
from spq_core.formats.range_coded.linear import LatticeLinear
from spq_core.formats.slicing import float_weight
from spq_core.methods.quantization import row_blocks
from spq_core.methods.quantization.gptq import hessian_factor, output_error
from spq_core.methods.quantization.grid import choose_grid, round_to_grid
from spq_core.methods.quantization.lattice import plan_lattice, round_to_lattice
from spq_core.planning.curve import curve_of
from tests.spq_core.methods.quantization.test_gptq import correlated_inputs, damped


def example(rows=96, columns=64):
    generator = torch.Generator().manual_seed(5)
    weight = torch.randn(rows, columns, generator=generator)
    return weight, correlated_inputs(columns, 2000), torch.rand(rows, generator=generator) + 0.2


def rounded_at(level, weight, second_moment, row_weights):
    feedback = hessian_factor(second_moment)
    plan = plan_lattice(weight, feedback, row_weights, level, 1)
    return round_to_lattice([weight], feedback, [plan], second_moment)[0]


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
        plan_lattice(weight, feedback, row_weights[: len(weight)], level, 1)
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
