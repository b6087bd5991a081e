"""Products of bfloat16 activations: as exact as they can be, on processors without instructions for them."""

import pytest
import torch

from spq_core.formats import product_dtype as chosen
from spq_core.formats.int8.linear import Int8Linear
from spq_core.formats.packed.linear import PackedLinear
from spq_core.formats.packing import pack

ROWS = 100
"""More than the decoding kernels take."""


def int8_layer(generator):
    codes = torch.randint(-127, 128, (48, 64), dtype=torch.int8, generator=generator)
    return Int8Linear.of(codes, torch.rand(48, generator=generator) / 100)


def packed_layer(generator):
    codes = torch.randint(0, 8, (48, 64), dtype=torch.uint8, generator=generator)
    scale = (torch.rand(48, 4, generator=generator) / 10).to(torch.float16)
    zero = torch.full((48, 4), 4, dtype=torch.uint8)
    return PackedLinear(pack(codes, 3), scale, zero, None, bits=3, n_in=64, group_size=16)


@pytest.mark.parametrize("make", [int8_layer, packed_layer])
@pytest.mark.parametrize("native", [True, False])
def test_results_are_rounded_once_whatever_the_processor(monkeypatch, make, native):
    monkeypatch.setattr(chosen, "NATIVE_BFLOAT16", native)
    generator = torch.Generator().manual_seed(0)
    layer = make(generator)
    x = torch.randn(ROWS, 64, generator=generator).to(torch.bfloat16)
    wanted = x.float() @ layer.float_weight().T
    found = layer(x)
    assert found.dtype == torch.bfloat16
    error = (found.float() - wanted).norm() / wanted.norm()
    assert error < (0.006 if native else 0.003)


@pytest.mark.parametrize(
    ("dtype", "native", "used"),
    [
        (torch.bfloat16, True, torch.bfloat16),
        (torch.bfloat16, False, torch.float32),
        (torch.float16, True, torch.float32),
        (torch.float32, False, torch.float32),
    ],
)
def test_which_dtype_is_used(monkeypatch, dtype, native, used):
    monkeypatch.setattr(chosen, "NATIVE_BFLOAT16", native)
    assert chosen.product_dtype(torch.zeros(2, dtype=dtype)) == used
