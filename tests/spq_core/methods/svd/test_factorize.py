import pytest
import torch

from spq_core.methods.svd.factorize import decompose, decompose_output, project_outputs, truncate


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


@pytest.mark.parametrize("shape", [(30, 50), (50, 30)])
@pytest.mark.parametrize("singular_values", ["up", "split", "down"])
def test_output_error_is_the_dropped_energy_and_below_plain_svd(shape, singular_values):
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(shape, generator=generator)
    rows = torch.randn(500, shape[1], generator=generator) * torch.logspace(0, -2, shape[1])
    second_moment = rows.T @ rows / 500
    outputs = decompose_output(weight, second_moment, damping=0.0)
    up, down = project_outputs(weight, outputs, 8, singular_values)
    error = float(((rows @ (up @ down - weight).T).square().sum(dim=1)).mean())
    dropped = float(outputs.singular_values[8:].square().sum())
    assert error == pytest.approx(dropped, rel=1e-3)
    plain_up, plain_down = truncate(weight, decompose(weight), 8)
    plain = float(((rows @ (plain_up @ plain_down - weight).T).square().sum(dim=1)).mean())
    assert error < 0.5 * plain


def test_outputs_that_count_more_are_kept_better():
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(30, 50, generator=generator)
    rows = torch.randn(500, 50, generator=generator) * torch.logspace(0, -2, 50)
    second_moment = rows.T @ rows / 500
    weights = torch.ones(30)
    weights[:5] = 100.0
    errors = []
    for given in (None, weights):
        outputs = decompose_output(weight, second_moment, given, damping=0.0)
        up, down = project_outputs(weight, outputs, 8, output_weights=given)
        error = (rows @ (up @ down - weight).T).square().mean(dim=0)
        errors.append(error)
        if given is not None:
            dropped = float(outputs.singular_values[8:].square().sum())
            relative = weights / weights.mean()
            assert float(error @ relative) == pytest.approx(dropped, rel=1e-3)
    even, weighted = errors
    assert weighted[:5].sum() < 0.2 * even[:5].sum()
    assert weighted @ weights < even @ weights


def test_directions_that_calibration_never_saw_are_not_given_away():
    """Few tokens span few directions; on others an undamped choice of directions loses more."""
    generator = torch.Generator().manual_seed(4)
    weight = torch.randn(40, 64, generator=generator)
    seen = torch.randn(24, 64, generator=generator)
    others = torch.randn(4000, 64, generator=generator)
    losses = {}
    for damping in (0.0, 0.01, 0.5):
        outputs = decompose_output(weight, seen.T @ seen / len(seen), damping=damping)
        up, down = project_outputs(weight, outputs, 20)
        losses[damping] = float((others @ (up @ down - weight).T).square().mean())
    assert losses[0.5] < losses[0.01] < losses[0.0]
