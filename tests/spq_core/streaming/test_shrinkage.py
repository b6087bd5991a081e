"""How much of a measured second moment is noise, against the truth."""

import pytest
import torch

from spq_core.streaming.moments import InputMoments
from spq_core.streaming.shrinkage import TOKENS_PER_SAMPLE, extra_damping, shrinkage

N = 48


def truth():
    generator = torch.Generator().manual_seed(0)
    factors = torch.randn(N, 6, generator=generator, dtype=torch.float64)
    return factors @ factors.T + torch.eye(N, dtype=torch.float64)


def measured(covariance, tokens, seed=1):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(tokens, N, generator=generator, dtype=torch.float64)
    rows = rows @ torch.linalg.cholesky(covariance).T
    return InputMoments(rows.mean(dim=0), rows.T @ rows / tokens, int(tokens * TOKENS_PER_SAMPLE))


def test_more_tokens_mean_less_of_it():
    shares = [shrinkage(measured(truth(), tokens)) for tokens in (50, 500, 5000)]
    assert shares[0] > 5 * shares[1] > 25 * shares[2] > 0


def test_inputs_that_have_nothing_in_common_are_taken_for_that():
    assert shrinkage(measured(torch.eye(N, dtype=torch.float64), 60)) > 0.8


def test_the_share_comes_near_the_best_there_is():
    """Σ (r̂ (1 − ρ) − r)² is least at about this ρ."""
    covariance = truth()
    scale = covariance.diagonal().rsqrt()
    wanted = covariance * scale[:, None] * scale
    moments = measured(covariance, 60)
    own = moments.second_moment.diagonal().rsqrt()
    found = moments.second_moment * own[:, None] * own

    def error(share):
        off = (found * (1 - share) - wanted).square()
        return float(off.sum() - off.diagonal().sum())

    best = min(error(share / 100) for share in range(100))
    assert error(shrinkage(moments)) < 1.1 * best
    assert error(shrinkage(moments)) < error(0.0)


def test_units_do_not_matter():
    moments = measured(truth(), 100)
    scale = torch.logspace(-3, 3, N, dtype=torch.float64)
    scaled = InputMoments(
        moments.mean, moments.second_moment * scale[:, None] * scale, moments.tokens
    )
    assert shrinkage(scaled) == pytest.approx(shrinkage(moments), rel=1e-6)


def test_without_a_number_of_tokens_nothing_is_taken_for_noise():
    moments = measured(truth(), 50)
    assert extra_damping(InputMoments(moments.mean, moments.second_moment)) == 0.0


def test_inputs_that_are_never_active_do_no_harm():
    moments = measured(truth(), 100)
    second_moment = moments.second_moment.clone()
    second_moment[3], second_moment[:, 3] = 0.0, 0.0
    assert 0 < shrinkage(InputMoments(moments.mean, second_moment, moments.tokens)) < 0.98
