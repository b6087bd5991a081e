"""The GPU's kernels, run by Triton's interpreter: what they compute, not how fast."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from spq_core.formats import cuda_decode

CHECK = """
import torch
from spq_core.formats.cuda_decode import int4_rows, int8_rows
from spq_core.formats.packed.linear import PackedLinear
from spq_core.formats.packing import pack

def close(found, wanted):
    torch.testing.assert_close(found.float(), wanted, rtol=5e-3, atol=5e-3 * float(wanted.abs().max()))

generator = torch.Generator().manual_seed(0)
for rows, n_out, n_in, width in ((1, 40, 100, 112), (5, 33, 300, 304), (16, 64, 512, 512)):
    codes = torch.randint(-127, 128, (n_out, width), generator=generator).to(torch.int8)
    x = torch.randn(rows, n_in, generator=generator).half()
    for scale in (torch.rand(n_out, generator=generator), torch.rand(1, generator=generator)):
        close(int8_rows(x, codes, scale / 64), x.float() @ (codes[:, :n_in] * scale[:, None] / 64).T)
for rows, n_out, n_in, size in ((1, 40, 128, 64), (3, 33, 192, 32), (7, 20, 256, 128), (2, 16, 100, 32)):
    codes = torch.randint(0, 16, (n_out, n_in), generator=generator).to(torch.uint8)
    groups = -(-n_in // size)
    scale = torch.rand(n_out, groups, generator=generator).half()
    zero = torch.randint(0, 16, (n_out, groups), generator=generator).to(torch.uint8)
    layer = PackedLinear(pack(codes, 4), scale, zero, bits=4, n_in=n_in, group_size=size)
    x = torch.randn(rows, n_in, generator=generator).half()
    close(int4_rows(x, layer.packed.data, scale, zero, size), x.float() @ layer.dequantized().T)
"""


@pytest.mark.skipif(
    importlib.util.find_spec("triton") is None,
    reason="triton is not installed (it comes with CUDA)",
)
def test_kernels_give_the_products_of_the_widened_weights():
    environment = os.environ | {
        "TRITON_INTERPRET": "1",
        "PYTHONPATH": os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")]),
    }
    subprocess.run([sys.executable, "-c", CHECK], check=True, env=environment, timeout=300)


def test_a_cpu_never_takes_them():
    assert not cuda_decode.takes(torch.ones(1, 8, dtype=torch.bfloat16))


@pytest.mark.parametrize(("size", "columns"), [(64, 64), (256, 128), (96, 32), (48, None)])
def test_a_step_stays_in_its_group(size, columns):
    assert cuda_decode.group_columns(size) == columns
