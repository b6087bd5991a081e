import pytest
import torch

from spq_core.methods.quantization import gptq as feedback_module
from spq_core.methods.quantization.gptq import (
    Cells,
    gptq_round,
    hessian_factor,
    output_error,
)
from spq_core.methods.quantization.grid import choose_grid, round_to_grid
from spq_core.streaming.inverse import damp


def correlated_inputs(n=24, tokens=400, seed=0):
    """Inputs with a few strong directions, as layers have them."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(n, n, generator=generator) * torch.logspace(0, -2, n)[:, None]
    rows = torch.randn(tokens, n, generator=generator) @ mix
    return rows.T @ rows / tokens


def damped(second_moment):
    exact = second_moment.double()
    damp(exact)
    return exact


def random_weight(rows=10, columns=24, seed=1):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def whole_numbers(columns):
    """Cells of step one, for ten rows."""
    steps = torch.ones(len(columns), 10)
    return Cells(steps, -1000 * steps, 1000 * steps)


@pytest.mark.parametrize("act_order", [True, False])
def test_every_rounding_is_made_up_for_by_the_best_update_of_the_rest(act_order):
    weight, second_moment = random_weight(), correlated_inputs()
    feedback = hessian_factor(second_moment, act_order=act_order)
    ours = gptq_round(weight, feedback, whole_numbers)
    # The same by solving the least-squares problem for the remaining columns at every step.
    exact, order = damped(second_moment), feedback.order.tolist()
    rounded = torch.zeros_like(weight, dtype=torch.float64)
    for step, column in enumerate(order):
        done, rest = order[:step], order[step:]
        current = weight.double()[:, rest]
        if done:
            missing = weight.double()[:, done] - rounded[:, done]
            cross = exact[done][:, rest]
            current = current + missing @ cross @ torch.linalg.inv(exact[rest][:, rest])
        rounded[:, column] = current[:, 0].round()
    torch.testing.assert_close(ours.double(), rounded)


@pytest.mark.parametrize("act_order", [True, False])
@pytest.mark.parametrize("damping", [0.01, 1e-5])
def test_the_factor_is_that_of_the_damped_moment(act_order, damping):
    n = 1100
    second_moment = correlated_inputs(n, tokens=2 * n)
    feedback = hessian_factor(second_moment, damping, act_order=act_order)
    order = feedback.order
    exact = second_moment.double()
    damp(exact, damping)
    exact = exact[order][:, order]
    upper = torch.zeros(n, n, dtype=torch.float64)
    for start, stop in ((0, 128), (128, 1024), (1024, 1100)):
        upper[:stop, start:stop] = feedback.columns(start, stop)
    scale = exact.diagonal().sqrt()
    apart = (upper @ upper.T - exact) / scale[:, None] / scale
    assert float(apart.abs().max()) < 1e-5
    assert torch.equal(upper, upper.triu())
    steps = feedback.column_steps[order].double()
    inverse = torch.linalg.cholesky(torch.linalg.inv(exact), upper=True)
    torch.testing.assert_close(steps, inverse.diagonal(), rtol=1e-3, atol=0)


def test_float32_fails_where_float64_does_not(monkeypatch):
    """Then the damping stays what was asked for."""
    tried = []
    real = torch.linalg.cholesky_ex

    def failing(matrix, *, out):
        tried.append(matrix.dtype)
        real(matrix, out=out)
        if matrix.dtype == torch.float32:
            out[1].fill_(3)

    monkeypatch.setattr(torch.linalg, "cholesky_ex", failing)
    second_moment = correlated_inputs()
    lower = hessian_factor(second_moment, act_order=False).lower
    assert tried == [torch.float32, torch.float64]
    torch.testing.assert_close((lower @ lower.T).flip(0, 1), damped(second_moment))


def test_a_second_moment_that_cannot_be_inverted_is_damped():
    row = torch.randn(1, 24, generator=torch.Generator().manual_seed(2))
    for second_moment in (row.T @ row, torch.zeros(24, 24)):
        feedback = hessian_factor(second_moment)
        rounded = gptq_round(random_weight(), feedback, whole_numbers)
        assert torch.isfinite(feedback.lower).all()
        assert int(rounded.abs().max()) < 50


def test_one_input_a_million_times_as_strong_does_not_drown_the_others():
    second_moment = correlated_inputs()
    strong = torch.ones(24)
    strong[5] = 1e3
    scaled = second_moment * strong[:, None] * strong[None]
    weight = random_weight()
    weight[:, 5] = 0.0  # on every grid, so that nothing has to make up for it
    grid = choose_grid(weight, 4)
    others = torch.arange(24) != 5
    quiet = scaled[others][:, others]
    error = {}
    for name, feedback in {"feedback": hessian_factor(scaled), "none": None}.items():
        rounded = round_to_grid(weight, grid, feedback).dequantized()
        error[name] = output_error(weight[:, others], rounded[:, others], quiet).sum()
    assert error["feedback"] < 0.7 * error["none"]


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group_size", [None, 8])
def test_feedback_leaves_less_output_error_than_rounding(bits, symmetric, group_size):
    weight, second_moment = random_weight(), correlated_inputs()
    grid = choose_grid(weight, bits, group_size, symmetric=symmetric)
    plain = round_to_grid(weight, grid).dequantized()
    paid = round_to_grid(weight, grid, hessian_factor(second_moment)).dequantized()
    assert (
        output_error(weight, paid, second_moment).sum()
        < 0.8 * output_error(weight, plain, second_moment).sum()
    )


def test_sparsity_removes_the_share_it_names_and_pays_for_it():
    weight, second_moment = random_weight(), correlated_inputs()
    grid = choose_grid(weight, 8)
    sparse = round_to_grid(weight, grid, hessian_factor(second_moment), sparsity=0.5).dequantized()
    assert (sparse == 0).float().mean() == pytest.approx(0.5, abs=0.02)
    cut = torch.where(sparse == 0, 0.0, weight)
    assert (
        output_error(weight, sparse, second_moment).sum()
        < 0.5 * output_error(weight, cut, second_moment).sum()
    )


def test_matrices_with_one_input_are_factorised_once(monkeypatch):
    made = []
    monkeypatch.setattr(
        feedback_module,
        "hessian_factor",
        lambda second_moment, *_args, **_named: made.append(second_moment) or second_moment,
    )
    shared, one, other = feedback_module.SharedHessianFactor(), torch.eye(3), torch.eye(3)
    for second_moment in (one, one, one, other, other, one):
        assert shared.of(second_moment, 0.01, act_order=True) is second_moment
    assert [second_moment is one for second_moment in made] == [True, False, True]
