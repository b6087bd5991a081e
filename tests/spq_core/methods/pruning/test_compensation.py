import pytest
import torch

from spq_core.methods.pruning.compensation import compensate, score_neurons
from spq_core.streaming.moments import InputMoments
from spq_core.streaming.shrinkage import TOKENS_PER_SAMPLE


def inputs(n=12, tokens=3000):
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(tokens, n, generator=generator) @ torch.randn(n, n, generator=generator)
    return rows + torch.randn(n, generator=generator)


def moments(rows):
    return InputMoments(rows.mean(dim=0), rows.T @ rows / len(rows))


def output_loss(rows, weight, bias, kept, updated):
    before = rows @ weight.T + (0 if bias is None else bias)
    after = rows[:, kept] @ updated.weight.T + (0 if updated.bias is None else updated.bias)
    return float((after - before).square().mean())


@pytest.mark.parametrize("with_bias", [True, False])
def test_updates_lose_less_the_more_they_may_change(with_bias):
    rows = inputs()
    weight = torch.randn(5, 12, generator=torch.Generator().manual_seed(1))
    bias = torch.zeros(5) if with_bias else None
    kept = torch.arange(9)
    losses = {
        rule: output_loss(
            rows, weight, bias, kept, compensate(rule, weight, bias, kept, moments(rows))
        )
        for rule in ("none", "bias", "least_squares")
    }
    assert losses["least_squares"] < 0.5 * losses["bias"]
    assert losses["bias"] < losses["none"] if with_bias else losses["bias"] == losses["none"]
    # the least-squares optimum, by torch's own solver
    centred = rows - rows.mean(dim=0) if with_bias else rows
    best = torch.linalg.lstsq(centred[:, kept], centred @ weight.T).solution.T
    ours = compensate("least_squares", weight, bias, kept, moments(rows)).weight
    assert (ours - best).norm() < 0.1 * best.norm()


def test_a_neuron_that_others_can_replace_is_removed_without_loss():
    rows = inputs()
    rows[:, 4] = 2 * rows[:, 1] - rows[:, 7]
    weight = torch.randn(5, 12, generator=torch.Generator().manual_seed(2))
    assert int(score_neurons("obs", weight, moments(rows)).argmin()) in {1, 4, 7}
    kept = torch.tensor([j for j in range(12) if j != 4])
    updated = compensate("least_squares", weight, None, kept, moments(rows))
    assert output_loss(rows, weight, None, kept, updated) < 0.01 * float(
        (rows @ weight.T).square().mean()
    )


def test_an_obs_score_is_the_loss_after_the_best_update():
    rows = inputs()
    weight = torch.randn(5, 12, generator=torch.Generator().manual_seed(3))
    scores = score_neurons("obs", weight, moments(rows))
    for neuron in range(12):
        kept = torch.tensor([j for j in range(12) if j != neuron])
        updated = compensate("least_squares", weight, None, kept, moments(rows))
        loss = 5 * output_loss(rows, weight, None, kept, updated)
        assert loss < 1.01 * float(scores[neuron]) < 2 * loss  # damping makes the score a bound


def test_flap_forgives_an_input_that_never_varies_and_wanda_does_not():
    rows = inputs()
    rows[:, 3] = 5.0
    weight = torch.ones(5, 12)
    assert score_neurons("flap", weight, moments(rows)).argmin() == 3
    assert score_neurons("wanda", weight, moments(rows)).argmin() != 3


@pytest.mark.parametrize("with_bias", [True, False])
def test_where_nothing_is_removed_nothing_changes(with_bias):
    weight = torch.randn(5, 12, generator=torch.Generator().manual_seed(4))
    bias = torch.randn(5, generator=torch.Generator().manual_seed(5)) if with_bias else None
    updated = compensate("least_squares", weight, bias, torch.arange(12), moments(inputs()))
    assert torch.equal(updated.weight, weight)
    assert updated.bias is bias or torch.equal(updated.bias, bias)


@pytest.mark.parametrize("tokens", [16, 64, 256, 4096])
@pytest.mark.parametrize("common", [0.0, 0.5, 1.0])
def test_an_update_is_never_worse_than_none_on_rows_it_has_not_seen(tokens, common):
    """However few tokens there were, and whether or not inputs have something in common."""
    n = 64
    generator = torch.Generator().manual_seed(tokens)
    mixing = torch.randn(8, n, generator=generator)
    for trial in range(5):
        seeded = torch.Generator().manual_seed(trial)

        def rows(count, seeded=seeded):
            shared = torch.randn(count, 8, generator=seeded) @ mixing
            return common * shared + torch.randn(count, n, generator=seeded)

        seen, held_out = rows(tokens), rows(4000)
        weight = torch.randn(24, n, generator=seeded)
        kept = torch.randperm(n, generator=seeded)[:48].sort().values
        known = InputMoments(
            seen.mean(dim=0), seen.T @ seen / tokens, int(TOKENS_PER_SAMPLE * tokens)
        )
        none = compensate("none", weight, None, kept, known)
        fitted = compensate("least_squares", weight, None, kept, known)
        before = output_loss(held_out, weight, None, kept, none)
        assert output_loss(held_out, weight, None, kept, fitted) < 1.02 * before
        if common and tokens >= 256:
            assert output_loss(held_out, weight, None, kept, fitted) < 0.9 * before
