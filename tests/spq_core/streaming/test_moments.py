import pytest
import torch

from spq_core.streaming.moments import RunningMoments


@pytest.mark.parametrize("width", [5, 192, 500])
def test_sums_over_batches_are_the_moments_of_all_rows(width):
    rows = torch.randn(3, 40, width, generator=torch.Generator().manual_seed(0)) + 0.3
    running = RunningMoments(width, rows.device)
    running.add(rows[:1])
    running.add(rows[1:].bfloat16())
    found = running.moments()
    exact = torch.cat([rows[:1], rows[1:].bfloat16().float()]).double().flatten(0, 1)
    torch.testing.assert_close(found.mean.double(), exact.mean(dim=0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        found.second_moment.double(), exact.T @ exact / 120, rtol=1e-5, atol=1e-5
    )
    assert torch.equal(found.second_moment, found.second_moment.T)
    assert found.tokens == 120


def test_the_largest_values_are_kept():
    rows = torch.tensor([[[1.0, -5.0], [2.0, 3.0]], [[-4.0, 0.0], [0.5, 1.0]]])
    running = RunningMoments(2, rows.device)
    for batch in rows:
        running.add(batch)
    assert running.moments().peak.tolist() == [4.0, 5.0]
