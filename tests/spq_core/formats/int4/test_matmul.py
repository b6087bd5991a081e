import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spq_core.formats.conversion import to_runtime
from spq_core.formats.int4.linear import Int4Embedding
from spq_core.formats.int4.matmul import (
    BLOCK_ROWS,
    block_rows,
    from_blocks,
    rows_from_blocks,
    to_blocks,
)
from spq_core.formats.int8.linear import Int8Linear
from spq_core.formats.packed.linear import PackedEmbedding, PackedLinear
from spq_core.formats.packing import pack
from spq_core.methods.quantization.grid import choose_grid, round_to_grid

needs_kernel = pytest.mark.skipif(
    block_rows() is None, reason="torch has no packed 4-bit kernel of a known order here"
)


def packed_layer(n_out, n_in, group, *, bits=4, symmetric=False, bias=False):
    torch.manual_seed(3)
    weight = torch.randn(n_out, n_in) * 0.05 + 0.02
    grid = choose_grid(weight, bits, group, symmetric=symmetric)
    rounded = round_to_grid(weight, grid)
    return PackedLinear(
        pack(rounded.codes, bits), grid.scale.half(), grid.zero,
        torch.randn(n_out) if bias else None, bits=bits, n_in=n_in, group_size=grid.group_size,
    )  # fmt: skip


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(BLOCK_ROWS), st.integers(1, 3), st.integers(1, 20), st.integers(0, 99))
def test_reordering_loses_nothing(rows, blocks, pairs, seed):
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 16, (64 * blocks, 2 * pairs), generator=generator, dtype=torch.uint8)
    ordered = to_blocks(codes, rows)
    assert ordered.numel() == codes.numel() // 2
    assert torch.equal(from_blocks(ordered, rows), codes)
    ids = torch.randint(0, len(codes), (7,), generator=generator)
    assert torch.equal(rows_from_blocks(ordered, ids, rows), codes[ids])


@needs_kernel
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [1, 3, 64, 65, 200])
@pytest.mark.parametrize(
    ("n_out", "n_in", "group"),
    [(64, 64, 64), (64, 128, 64), (50, 96, 32), (7, 130, 64), (130, 200, None), (4200, 64, 64)],
)
def test_it_multiplies_by_the_weight_that_is_stored(dtype, rows, n_out, n_in, group):
    if group is None:
        group = 192  # one group and a short one, each three of the kernel's
    stored = packed_layer(n_out, n_in, group, bias=True)
    layer = stored.to_runtime()
    x = torch.randn(rows, n_in).to(dtype)
    expected = x.double() @ stored.dequantized().double().T + stored.bias.double()
    actual = layer(x)
    assert actual.dtype == dtype
    assert actual.shape == (rows, n_out)
    # many rows are exact up to the dtype; the kernel rounds activations and offsets to bfloat16
    exact = rows > 64 and dtype == torch.float32
    limit = 1e-5 if exact else 0.02
    assert float((actual.double() - expected).norm() / expected.norm()) < limit


@needs_kernel
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("n_out", "n_in", "group"), [(64, 128, 64), (50, 200, 192), (9, 96, 32)])
def test_the_stored_form_comes_back_exactly(n_out, n_in, group, symmetric):
    layer = packed_layer(n_out, n_in, group, symmetric=symmetric)
    back = layer.to_runtime().stored()
    assert torch.equal(back.packed, layer.packed)
    assert torch.equal(back.scale, layer.scale)
    assert torch.equal(back.zero, layer.zero)


@needs_kernel
def test_an_embedding_gives_the_rows_of_the_stored_weight():
    linear = packed_layer(300, 96, 32)
    parts = (linear.packed.data, linear.scale.data, linear.zero.data)
    shape = {"bits": 4, "n_in": 96, "group_size": 32, "output_scale": 2.0}
    stored = PackedEmbedding(*parts, torch.float32, **shape)
    table = stored.to_runtime()
    assert isinstance(table, Int4Embedding)
    ids = torch.tensor([[0, 299, 31], [32, 63, 64]])
    torch.testing.assert_close(table(ids), stored(ids), rtol=1e-6, atol=0)


@needs_kernel
def test_an_input_of_another_width_is_refused():
    layer = packed_layer(64, 100, 32).to_runtime()
    with pytest.raises(ValueError, match="90 columns"):
        layer(torch.randn(2, 90))


@pytest.mark.parametrize("change", ["negative scale", "zero point", "fine scale"])
def test_grids_the_kernel_cannot_hold_keep_their_stored_form(change):
    layer = packed_layer(64, 64, 32)
    if change == "negative scale":
        layer.scale.data[0, 0] *= -1
    elif change == "zero point":
        layer.zero.data[0, 0] = 200
    else:
        layer.scale.data[0, 0] = 0.1  # not a bfloat16
    model = torch.nn.Sequential(layer)
    to_runtime(model)
    assert model[0] is layer


@needs_kernel
def test_memory_is_that_of_the_codes():
    layer = packed_layer(576, 1536, 64)
    ordered = layer.to_runtime()
    held = sum(part.nbytes for part in ordered.parameters())
    assert held <= 1.1 * sum(part.nbytes for part in layer.parameters())


def test_what_no_kernel_takes_keeps_its_stored_form():
    for layer in (packed_layer(16, 96, 24), packed_layer(16, 96, 32, bits=3)):
        model = torch.nn.Sequential(layer)
        to_runtime(model)
        assert model[0] is layer


def test_8_bit_rows_become_int8_layers():
    model = torch.nn.Sequential(packed_layer(40, 100, None, bits=8, symmetric=True, bias=True))
    stored, x = model[0], torch.randn(5, 100)
    to_runtime(model)
    assert isinstance(model[0], Int8Linear)
    expected = stored(x)
    assert float((model[0](x) - expected).norm() / expected.norm()) < 0.01
