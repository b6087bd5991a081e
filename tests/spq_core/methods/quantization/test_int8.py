import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from spq_core.methods.quantization import int8
from spq_core.methods.quantization.int8 import dequantize, quantize_per_channel, quantize_per_tensor

weights = arrays(
    "float32",
    array_shapes(min_dims=2, max_dims=2, max_side=8),
    elements=st.floats(-1e4, 1e4, width=32),
).map(torch.from_numpy)


@given(weights)
def test_error_is_at_most_half_a_step(weight):
    for quantize in (quantize_per_channel, quantize_per_tensor):
        quantized = quantize(weight)
        error = (dequantize(quantized) - weight).abs()
        assert (error <= quantized.scale[:, None] * 0.5001).all()


@given(weights)
def test_negating_the_weight_negates_the_codes(weight):
    assert torch.equal(quantize_per_channel(-weight).codes, -quantize_per_channel(weight).codes)


def test_all_zero_row_stays_zero():
    quantized = quantize_per_channel(torch.zeros(2, 3))
    assert torch.equal(dequantize(quantized), torch.zeros(2, 3))


def test_blocks_do_not_change_the_result(monkeypatch):
    weight = torch.randn(50, 9).to(torch.bfloat16)
    whole = [quantize_per_channel(weight), quantize_per_tensor(weight)]
    monkeypatch.setattr(int8, "BLOCK_BYTES", 7 * 9 * 4)
    for before, after in zip(
        whole, [quantize_per_channel(weight), quantize_per_tensor(weight)], strict=True
    ):
        assert torch.equal(before.codes, after.codes)
        assert torch.equal(before.scale, after.scale)
