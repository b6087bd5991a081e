import pytest
import torch

from spq_core.errors import NumericalError
from spq_core.streaming.inverse import damp, inverse_factor
from tests.spq_core.methods.quantization.test_gptq import correlated_inputs

N = 1300  # whole blocks and a rest


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("count", [N, 1100, 40])
def test_the_factor_squared_is_the_inverse(centred, count):
    second_moment = correlated_inputs(N, tokens=2 * N)
    generator = torch.Generator().manual_seed(3)
    mean = 0.01 * torch.randn(N, generator=generator) if centred else None
    kept = torch.randperm(N, generator=generator)[:count]
    exact = second_moment.double()
    if mean is not None:
        exact -= torch.outer(mean, mean).double()
    exact = exact[kept][:, kept]
    damp(exact)
    factor = inverse_factor(second_moment, kept, mean=mean)
    product = factor.T @ factor @ exact
    torch.testing.assert_close(product, torch.eye(count).double(), atol=1e-7, rtol=0)


def test_what_is_not_finite_is_refused():
    second_moment = correlated_inputs()
    second_moment[3, 3] = torch.inf
    with pytest.raises(NumericalError, match="second moment"):
        inverse_factor(second_moment)
