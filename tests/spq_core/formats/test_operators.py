"""The products inside torch.compile, and their gradients."""

import copy
import shutil

import pytest
import torch

from spq_core.formats.conversion import to_runtime
from spq_core.formats.int8.linear import Int8Linear
from spq_core.formats.slicing import float_weight
from tests.spq_core.formats.int4.test_matmul import needs_kernel, packed_layer


def int8_layer():
    torch.manual_seed(2)
    layer = Int8Linear.of(
        torch.randint(-127, 128, (70, 50), dtype=torch.int8), torch.rand(70) * 0.01, torch.randn(70)
    )
    layer.input_scale = torch.nn.Parameter(torch.rand(50) + 0.5, requires_grad=False)
    return layer, float_weight(layer)


def int4_layer():
    stored = packed_layer(70, 100, 32, bias=True)
    model = torch.nn.Sequential(stored)
    to_runtime(model)
    return model[0], stored.dequantized()


LAYERS = [
    pytest.param(int8_layer, id="int8"),
    pytest.param(int4_layer, id="int4", marks=needs_kernel),
]


@pytest.mark.parametrize("make", LAYERS)
@pytest.mark.parametrize("rows", [3, 80])
def test_gradients_reach_the_activations(make, rows):
    layer, weight = make()
    x = torch.randn(2, rows, weight.shape[1], requires_grad=True)
    wanted = torch.randn(2, rows, weight.shape[0])
    (layer(x) * wanted).sum().backward()
    torch.testing.assert_close(x.grad, wanted @ weight, rtol=1e-4, atol=1e-4)
    assert all(parameter.grad is None for parameter in layer.parameters())


@pytest.mark.parametrize("make", LAYERS)
def test_a_bias_that_is_trained_gets_its_gradient(make):
    layer, weight = make()
    layer.bias.requires_grad_(True)
    x = torch.randn(5, weight.shape[1], requires_grad=True)
    wanted = torch.randn(5, weight.shape[0])
    (layer(x) * wanted).sum().backward()
    torch.testing.assert_close(layer.bias.grad, wanted.sum(0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("make", LAYERS)
def test_no_rows_are_no_problem(make):
    layer, weight = make()
    x = torch.zeros(0, weight.shape[1], requires_grad=True)
    layer(x).sum().backward()
    assert x.grad.shape == x.shape


@pytest.mark.parametrize("make", LAYERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_compiled_layer_is_one_graph_with_the_same_result(make, dtype):
    layer, weight = make()
    layer.bias = None  # adding one would hide how the product lies in memory
    compiled = torch.compile(copy.deepcopy(layer), fullgraph=True, backend="aot_eager")
    for rows in (1, 5, 80):
        x = torch.randn(rows, weight.shape[1]).to(dtype)
        with torch.no_grad():
            assert torch.equal(compiled(x), layer(x))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the compiler's own
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("make", LAYERS)
def test_the_default_compiler_takes_it(make):
    layer, weight = make()
    model = torch.nn.Sequential(layer, torch.nn.SiLU())
    x = torch.randn(2, weight.shape[1])
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(model)(x), model(x), rtol=1e-5, atol=1e-5)
