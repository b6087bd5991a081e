import pytest
import torch

from spq_core.formats.int8.matmul import int8_linear, is_aligned, pad_columns

GENERATOR = torch.Generator().manual_seed(5)


def random_codes(n_out, n_in):
    return torch.randint(-127, 128, (n_out, n_in), dtype=torch.int8, generator=GENERATOR)


def reference(x, codes, scale, bias):
    y = x.double() @ (codes.double() * scale.double().reshape(-1, 1)).T
    return y if bias is None else y + bias.double()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [1, 2, 5, 16, 17, 130])
@pytest.mark.parametrize(("n_out", "n_in"), [(48, 64), (50, 63), (7, 130), (576, 1459), (3000, 96)])
def test_close_to_float64_for_every_shape(dtype, rows, n_out, n_in):
    codes, bias = random_codes(n_out, n_in), torch.randn(n_out, generator=GENERATOR)
    x = torch.randn(rows, n_in, generator=GENERATOR).to(dtype)
    for scale in (torch.rand(n_out, generator=GENERATOR) * 0.01, torch.tensor([0.003])):
        expected = reference(x, codes, scale, bias)
        actual = int8_linear(x, pad_columns(codes), scale, bias)
        assert actual.dtype == dtype
        tolerance = 0.02 * float(expected.abs().max())
        assert float((actual.double() - expected).abs().max()) <= tolerance


@pytest.mark.parametrize("offset", [1, 4, 8, 16, 24])
@pytest.mark.parametrize("rows", [1, 3, 16])
def test_unaligned_views_neither_crash_nor_differ(offset, rows):
    """Weights mapped from a file and sliced activations lie at any address."""
    codes = random_codes(40, 64)
    shifted = torch.zeros(40 * 64 + 64, dtype=torch.int8)[offset : offset + 40 * 64].view(40, 64)
    shifted.copy_(codes)
    buffer = torch.randn(rows * 64 + 64, generator=GENERATOR).to(torch.bfloat16)
    x = buffer[offset : offset + rows * 64].view(rows, 64)
    scale = torch.full((40,), 0.01)
    expected = reference(x, codes, scale, None)
    actual = int8_linear(x, shifted, scale)
    torch.testing.assert_close(actual.double(), expected, rtol=0.02, atol=0.1)


def test_padding_makes_codes_readable_by_the_kernel():
    padded = pad_columns(random_codes(3, 33))
    assert padded.shape == (3, 48)
    assert is_aligned(padded)
    assert not padded[:, 33:].any()
    assert pad_columns(padded) is padded


def test_leading_dimensions_are_kept():
    codes, x = random_codes(5, 16), torch.randn(2, 3, 16, generator=GENERATOR)
    assert int8_linear(x, codes, torch.ones(5)).shape == (2, 3, 5)


def test_float16_does_not_overflow_where_the_result_is_small():
    x = torch.zeros(20, 256, dtype=torch.float16)
    x[:, 0] = 700.0
    codes = torch.zeros(8, 256, dtype=torch.int8)
    codes[:, 0] = 127
    for rows in (20, 3):
        y = int8_linear(x[:rows], codes, torch.full((8,), 4e-4))
        torch.testing.assert_close(y.float(), torch.full((rows, 8), 35.56), rtol=0.01, atol=0)
