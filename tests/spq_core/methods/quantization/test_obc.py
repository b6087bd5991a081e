"""The exact greedy solver, against one that solves a least-squares problem for every choice it has."""

import itertools

import pytest
import torch

from spq_core.methods.quantization import obc
from spq_core.methods.quantization.gptq import (
    Cells,
    HessianFactor,
    gptq_round,
    hessian_factor,
    output_error,
)
from spq_core.methods.quantization.grid import choose_grid
from spq_core.methods.quantization.obc import greedy_round, prune_losses
from spq_core.streaming.inverse import damp, damped_cholesky
from tests.spq_core.methods.quantization.test_gptq import correlated_inputs, damped, random_weight


def uneven_inputs(n, tokens=800, seed=7):
    """Inputs that differ and depend on each other, within reason."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(n, n, generator=generator) * torch.logspace(0, -0.5, n)[:, None]
    rows = torch.randn(tokens, n, generator=generator) @ mix
    return rows.T @ rows / tokens


def cells(weight, bits):
    """A scale per row."""
    grid = choose_grid(weight, bits)
    zero = grid.zero.T.float()

    def cells_of(columns):
        groups = columns // grid.group_size
        return Cells(grid.scale.T[groups], -zero[groups], grid.largest_code - zero[groups])

    return cells_of


def best_given(row, exact, fixed):
    """Weights of a row with some fixed to values, the others the best that can be done; and the error."""
    wanted = row.clone()
    for column, value in fixed.items():
        wanted[column] = value
    free = [column for column in range(len(row)) if column not in fixed]
    if free and fixed:
        done = list(fixed)
        missing = row[done] - wanted[done]
        wanted[free] = row[free] + torch.linalg.solve(
            exact[free][:, free], exact[free][:, done] @ missing
        )
    difference = wanted - row
    return wanted, float(difference @ exact @ difference)


def greedy_by_least_squares(row, exact, step, low, high):
    """Fix the weight that costs least in the end, one after the other; those outside of the grid first."""
    fixed = {}
    while len(fixed) < len(row):
        now, error = best_given(row, exact, fixed)
        free = [column for column in range(len(row)) if column not in fixed]
        nearest = (now / step).round().clamp(low, high) * step
        gaps = (now - nearest).abs()
        outside = [column for column in free if gaps[column] > step / 2 * (1 + 1e-9)]
        if outside:
            chosen = max(outside, key=lambda column: float(gaps[column]))
        else:
            chosen = min(
                free,
                key=lambda column: (
                    best_given(row, exact, fixed | {column: nearest[column]})[1] - error
                ),
            )
        fixed[chosen] = nearest[chosen]
    return torch.tensor([round(float(fixed[column] / step)) for column in range(len(row))])


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_each_weight_is_fixed_that_costs_least_and_the_others_make_up_for_it(bits, monkeypatch):
    monkeypatch.setattr(
        obc, "BYTES_AT_ONCE", 3 * 8 * 9**2
    )  # batches of three rows, the last one smaller
    weight, second_moment = random_weight(7, 9), correlated_inputs(9)
    if bits == 2:
        weight[:, 4] *= 3  # beyond what the others' scale reaches, once they have moved it
    cells_of = cells(weight, max(bits, 3))
    steps, low, high = cells_of(torch.arange(9))
    if bits == 2:
        steps = steps / 2
        cells_of = lambda columns: Cells(steps, low, high)  # noqa: E731
    codes = greedy_round(weight, second_moment, cells_of, cheapest_first=True)
    exact = damped(second_moment)
    for at, row in enumerate(weight.double()):
        oracle = greedy_by_least_squares(
            row, exact, float(steps[0, at]), float(low[0, at]), float(high[0, at])
        )
        assert codes[at].tolist() == oracle.tolist()


def test_rows_taken_one_by_one_come_to_the_same(monkeypatch):
    weight, second_moment = random_weight(6, 24), correlated_inputs()
    together = greedy_round(weight, second_moment, cells(weight, 4), sparsity=0.25)
    monkeypatch.setattr(obc, "BYTES_AT_ONCE", 1)
    apart = greedy_round(weight, second_moment, cells(weight, 4), sparsity=0.25)
    assert torch.equal(together, apart)


def test_pruning_costs_what_the_best_update_leaves():
    weight, second_moment = random_weight(5, 8).double(), correlated_inputs(8)
    exact = damped(second_moment)
    losses = prune_losses(weight, torch.linalg.inv(exact))
    for row, trace in zip(weight, losses, strict=True):
        fixed, before = {}, 0.0
        for loss in trace:
            free = [column for column in range(8) if column not in fixed]
            errors = {column: best_given(row, exact, fixed | {column: 0.0})[1] for column in free}
            chosen = min(errors, key=errors.get)
            fixed[chosen] = 0.0
            assert float(loss) == pytest.approx(errors[chosen] - before, rel=1e-6, abs=1e-9)
            before = errors[chosen]


def test_the_share_of_zeros_is_met_and_falls_where_it_costs_least():
    weight, second_moment = random_weight(10, 24), correlated_inputs()
    weight[3] *= 20  # nothing of it should go before much of the others has
    codes = greedy_round(weight, second_moment, cells(weight, 8), sparsity=0.5)
    zeros = (codes == 0).sum(dim=1)
    assert int(zeros.sum()) >= 120
    assert int(zeros[3]) == int(zeros.min())


def test_no_other_single_choice_of_a_tiny_matrix_is_far_better():
    """Greedy is not optimal; over all codes of a row of four it comes close, and never below."""
    generator = torch.Generator().manual_seed(3)
    worse = []
    for seed in range(12):
        weight = torch.randn(1, 4, generator=generator)
        second_moment = uneven_inputs(4, seed=seed)
        cells_of = cells(weight, 3)
        step, low, high = (float(part[0, 0]) for part in cells_of(torch.arange(4)))
        codes = greedy_round(weight, second_moment, cells_of)
        exact = second_moment.double()
        damp(exact)
        values = torch.tensor(list(itertools.product(range(int(low), int(high) + 1), repeat=4)))
        difference = values.double() * step - weight.double()
        best = float(((difference @ exact) * difference).sum(dim=1).min())
        found = codes.double() * step - weight.double()
        ours = float(((found @ exact) * found).sum())
        assert ours >= best * (1 - 1e-9)
        worse.append(ours / best)
    assert sorted(worse)[len(worse) // 2] < 1.5


@pytest.mark.parametrize(("bits", "sparsity"), [(4, 0.0), (3, 0.0), (4, 0.5)])
def test_exact_is_better_than_ordered_and_ordered_than_nearest(bits, sparsity):
    weight, second_moment = random_weight(64, 96, seed=5), uneven_inputs(96)
    cells_of, factor = cells(weight, bits), hessian_factor(second_moment)

    def error(codes):
        steps, _, _ = cells_of(torch.arange(96))
        return float(output_error(weight, codes.float() * steps.T, second_moment).sum())

    exact = error(greedy_round(weight, second_moment, cells_of, sparsity=sparsity))
    ordered = error(gptq_round(weight, factor, cells_of, sparsity=sparsity))
    in_place = hessian_factor(second_moment, act_order=False)
    unordered = error(gptq_round(weight, in_place, cells_of, sparsity=sparsity))
    steps, low, high = cells_of(torch.arange(96))
    nearest = error((weight / steps.T).round().clamp(low.T, high.T))
    assert exact < 1.01 * min(ordered, unordered)
    assert not sparsity or exact < 0.8 * min(ordered, unordered)
    assert sparsity or max(ordered, unordered) < nearest


def test_where_few_inputs_are_strong_the_cheapest_must_not_come_first():
    """The paper's order leaves the strongest columns for the end, with nothing left to make up for them; docs say so."""
    weight, second_moment = random_weight(64, 96, seed=5), correlated_inputs(96, tokens=800)
    cells_of = cells(weight, 4)
    steps, _, _ = cells_of(torch.arange(96))
    cheapest, ours, ordered = (
        float(output_error(weight, codes.float() * steps.T, second_moment).sum())
        for codes in (
            greedy_round(weight, second_moment, cells_of, cheapest_first=True),
            greedy_round(weight, second_moment, cells_of),
            gptq_round(weight, hessian_factor(second_moment), cells_of),
        )
    )
    assert ours < 1.02 * ordered
    assert cheapest > 1.2 * ordered


def test_without_pruning_the_order_is_that_of_the_least_freedom():
    """It is the same for all rows then, so that `gptq_round` in that order finds the same codes."""
    weight, second_moment = random_weight(10, 24), correlated_inputs()
    inverse, order = torch.linalg.inv(damped(second_moment)), []
    for _ in range(24):
        freedom = inverse.diagonal().clone()
        freedom[order] = torch.inf
        order.append(int(freedom.argmin()))
        line = inverse[:, order[-1]].clone()
        inverse -= torch.outer(line, line) / line[order[-1]]
    factor = HessianFactor(
        torch.tensor(order), damped_cholesky(second_moment, torch.tensor(order[::-1]))
    )
    cells_of = cells(weight, 4)
    assert torch.equal(
        greedy_round(weight, second_moment, cells_of), gptq_round(weight, factor, cells_of)
    )
