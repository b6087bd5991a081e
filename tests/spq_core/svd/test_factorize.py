import pytest
import torch

from spq_core.svd.factorize import decompose, truncate


@pytest.mark.parametrize("shape", [(30, 50), (50, 30), (40, 40)])
def test_matches_torch_svd(shape):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    u, s, vh = torch.linalg.svd(weight, full_matrices=False)
    spectrum = decompose(weight)
    torch.testing.assert_close(spectrum.singular_values.float(), s, rtol=1e-5, atol=1e-5)
    for rank in (1, 7, 29):
        up, down = truncate(weight, spectrum, rank)
        best = u[:, :rank] * s[:rank] @ vh[:rank]
        torch.testing.assert_close(up @ down, best, rtol=1e-4, atol=1e-4)
        # All singular values are on the second factor, so the first has orthonormal rows.
        torch.testing.assert_close(down @ down.T, torch.eye(rank), rtol=1e-4, atol=1e-4)


def test_zero_matrix_gives_finite_factors():
    zeros = torch.zeros(20, 30)
    up, down = truncate(zeros, decompose(zeros), 3)
    assert torch.equal(up @ down, zeros)
