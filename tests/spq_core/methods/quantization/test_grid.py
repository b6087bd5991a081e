import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spq_core.formats.packed.linear import PackedLinear
from spq_core.formats.packing import pack, unpack
from spq_core.methods.quantization.grid import choose_grid, round_to_grid


@given(st.sampled_from([3, 4, 8]), st.integers(1, 7), st.integers(1, 40), st.integers(0, 2**31))
def test_packing_loses_nothing(bits, rows, columns, seed):
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 1 << bits, (rows, columns), generator=generator).to(torch.uint8)
    packed = pack(codes, bits)
    assert packed.shape == (rows, -(-columns // 8) * bits)
    assert torch.equal(unpack(packed, bits, columns), codes)


@pytest.mark.parametrize("group_size", [None, 16, 24])
@pytest.mark.parametrize("symmetric", [True, False])
def test_rounding_is_off_by_half_a_step_at_most(group_size, symmetric):
    weight = torch.randn(6, 40, generator=torch.Generator().manual_seed(0))
    grid = choose_grid(weight, 4, group_size, symmetric=symmetric)
    error = (round_to_grid(weight, grid).dequantized() - weight).abs()
    # half a step, and another half where the zero point was rounded
    assert (error <= 1.01 * grid.scale.max()).all()
    zeros = torch.zeros(6, 40)
    assert torch.equal(round_to_grid(zeros, choose_grid(zeros, 4)).dequantized(), zeros)


def test_a_searched_scale_leaves_no_more_weighted_error():
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(20, 64, generator=generator)
    weight[:, 3] *= 6
    energy = torch.rand(64, generator=generator)
    energy[3] = 1e-4
    errors = []
    for weights in (None, energy):
        rounded = round_to_grid(
            weight, choose_grid(weight, 3, column_weights=weights)
        ).dequantized()
        errors.append(float(((rounded - weight).square() * energy).sum()))
    assert errors[1] < 0.7 * errors[0]


@pytest.mark.parametrize("n_in", [40, 128])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_packed_layer_multiplies_by_the_widened_weight(n_in, dtype):
    generator = torch.Generator().manual_seed(4)
    weight, bias = torch.randn(70, n_in, generator=generator), torch.randn(70, generator=generator)
    grid = choose_grid(weight, 3, 16, symmetric=False)
    rounded = round_to_grid(weight, grid)
    layer = PackedLinear(
        pack(rounded.codes, 3), grid.scale.half(), grid.zero, bias,
        bits=3, n_in=n_in, group_size=16,
    ).to(dtype)  # fmt: skip
    x = torch.randn(2, 5, n_in, generator=generator).to(dtype)
    expected = x.float() @ rounded.dequantized().T + bias.to(dtype).float()
    tolerance = 1e-4 if dtype == torch.float32 else 0.02
    torch.testing.assert_close(layer(x).float(), expected, rtol=tolerance, atol=tolerance * 10)
    assert layer.scale.dtype == torch.float16
