"""Codes that compress well: scales, entropy, and what is pruned."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spq_core.methods.double_compression.codes import (
    ALPHAS,
    choose_alpha,
    column_scales,
    entropy,
    pruned_codes,
    relative_error,
    round_codes,
)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("alpha", ALPHAS)
def test_scales_are_powers_of_two_and_grow_with_inputs(alpha):
    peak = normal(50).abs() * 10
    scales = column_scales(peak, alpha)
    assert torch.equal(scales, scales.log2().round().exp2())
    assert scales.min() == 1
    ordered = scales[peak.argsort()]
    assert torch.equal(ordered, ordered.cummax(0).values)
    ratio = (peak / peak.min()) ** alpha / scales
    assert ratio.log2().abs().max() <= 1.0  # half an octave at either end


@pytest.mark.parametrize("scales", ["matrix", "row"])
def test_rounding_clips_nothing_and_is_to_the_nearest(scales):
    weight = normal(20, 30) * torch.linspace(0.01, 3, 20)[:, None]
    rounded = round_codes(weight, scales)
    steps = rounded.steps.row_steps[:, None]
    assert ((rounded.codes * steps - weight).abs() <= steps / 2 * 1.0001).all()
    peaks = rounded.codes.abs().amax(dim=1)
    assert (peaks.min() > 120) if scales == "row" else (peaks.max() > 120)
    assert (len(set(rounded.steps.rows.tolist())) == 1) == (scales == "matrix")


def test_a_matrix_of_zeros_is_codes_of_zero():
    assert not round_codes(torch.zeros(4, 5), "row").codes.any()


def test_entropy_is_that_of_what_occurs():
    assert entropy(torch.zeros(8, 8, dtype=torch.int8)) == 0.0
    assert entropy(torch.arange(64, dtype=torch.int8).view(8, 8)) == pytest.approx(6.0)
    assert entropy(torch.tensor([[0, 0, -127, 127]], dtype=torch.int8)) == pytest.approx(1.5)


def uneven():
    peak = torch.cat([torch.full((60,), 0.2), torch.full((4,), 30.0)])
    inputs = normal(2000, 64, seed=1) * peak / 4
    return normal(48, 64), peak, inputs.T @ inputs / len(inputs)


def test_more_scaling_takes_fewer_bits():
    weight, peak, _ = uneven()
    bits = [entropy(round_codes(weight * column_scales(peak, a), "matrix").codes) for a in ALPHAS]
    assert bits == sorted(bits, reverse=True)
    assert bits[-1] < bits[0] - 2


@pytest.mark.parametrize("most_error", [1e-5, 1e-4, 1e-3, 1e-2])
def test_alpha_has_the_fewest_bits_of_those_whose_error_is_allowed(most_error):
    weight, peak, second_moment = uneven()
    found = {}
    for alpha in ALPHAS:
        scale = column_scales(peak, alpha)
        rounded = round_codes(weight * scale, "matrix")
        back = rounded.codes * rounded.steps.row_steps[:, None] / scale
        found[alpha] = (entropy(rounded.codes), relative_error(weight, back, second_moment))
    chosen = choose_alpha([weight], peak, second_moment, "matrix", most_error)
    allowed = [bits for bits, error in found.values() if error <= most_error]
    if allowed:
        assert found[chosen][1] <= most_error
        assert found[chosen][0] == min(allowed)
    else:
        assert found[chosen][1] == min(error for _, error in found.values())


def test_errors_are_those_of_outputs():
    weight, _, second_moment = uneven()
    inputs = torch.linalg.cholesky(second_moment.double()).T  # E[x xᵀ] = Lᵀ L
    back = weight + 0.01 * normal(48, 64, seed=5)
    wanted = ((back - weight).double() @ inputs.T).square().sum() / (
        weight.double() @ inputs.T
    ).square().sum()
    assert relative_error(weight, back, second_moment) == pytest.approx(float(wanted), rel=1e-4)


@given(st.floats(0.0, 0.99), st.sampled_from(["score", "rate"]), st.integers(0, 100))
def test_as_many_are_zero_as_asked_for_and_nothing_else_changes(share, by, seed):
    rounded = round_codes(normal(12, 20, seed=seed), "row")
    pruned = pruned_codes(rounded, normal(20, seed=seed + 1).abs(), share, by)
    zeros = int((pruned == 0).sum())
    assert zeros == max(int(share * pruned.numel()), int((rounded.codes == 0).sum()))
    kept = pruned != 0
    assert torch.equal(pruned[kept], rounded.codes[kept])


def test_by_score_nothing_that_stays_scores_less_than_what_goes():
    rounded, peak = round_codes(normal(30, 40), "row"), normal(40, seed=3).abs()
    pruned = pruned_codes(rounded, peak, 0.4, "score")
    scores = rounded.codes.abs() * rounded.steps.row_steps[:, None] * peak
    gone = (pruned == 0) & (rounded.codes != 0)
    assert scores[gone].max() <= scores[pruned != 0].min()


def test_by_rate_a_bit_that_is_saved_costs_less():
    weight, _, second_moment = uneven()
    rounded = round_codes(weight, "row")
    spread = second_moment.diagonal().sqrt()
    before = entropy(rounded.codes)

    def cost(by):
        pruned = pruned_codes(rounded, spread, 0.3, by)
        change = (pruned - rounded.codes) * rounded.steps.row_steps[:, None]
        return float((change.square() @ spread.square()).sum()) / (before - entropy(pruned))

    assert cost("rate") <= cost("score") * 1.01
