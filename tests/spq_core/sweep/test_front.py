"""Rules of the front, by examples and by properties that hold of any figures."""

from hypothesis import given
from hypothesis import strategies as st

from spq_core.sweep.document import Objective, parse_sweep
from spq_core.sweep.front import best_member, judge, pareto_front

NAMES = ["bytes_on_disk", "kl"]


def test_a_figure_whose_error_nobody_knows_tells_nothing_apart():
    one = {"bytes_on_disk": 100, "kl": 0.1, "kl_se": None, "windows": 1}
    figures = {1: one, 2: one | {"kl": 0.2}, 3: one | {"kl": float("nan")}}
    assert best_member(figures, Objective(minimize="kl")) == (1, (2,))
    assert pareto_front(figures, NAMES) == (1, 2)
    beaten = {1: row(50, 0.1, 0.01), 2: row(100, 0.1, 0.01)}
    assert pareto_front(beaten, NAMES) == (1,)


def test_where_nothing_can_be_told_nothing_is_dropped():
    for keep in ("front", "best"):
        sweep = parse_sweep({"recipes": ["int8"], "keep": keep})
        assert judge(sweep, {}).kept(sweep, [1, 2]) == {1, 2}


def row(size, kl, error=0.0, **more):
    return {"bytes_on_disk": size, "kl": kl, "kl_se": error, "windows": 32, **more}


def test_the_front_is_what_no_other_beats():
    figures = {1: row(100, 0.01), 2: row(50, 0.1), 3: row(60, 0.2), 4: row(50, 0.3)}
    assert pareto_front(figures, NAMES) == (1, 2)
    assert pareto_front({1: row(100, 0.01), 2: {"bytes_on_disk": 1}}, NAMES) == (1,)


def test_some_bytes_of_a_report_win_no_place_on_the_front():
    figures = {
        1: row(57_018_401, 0.72, 0.03),
        2: row(57_018_395, 0.60, 0.02),
        3: row(57_018_388, 1.3, 0.05),
    }
    assert pareto_front(figures, NAMES) == (2,)
    assert pareto_front({1: row(57_100_000, 0.6, 0.02), 2: row(57_018_395, 0.72, 0.03)}, NAMES) == (
        1,
        2,
    )


def test_what_error_can_be_beats_nobody():
    noisy = {1: row(100, 0.010, 0.001), 2: row(100, 0.011, 0.001), 3: row(100, 0.02, 0.001)}
    assert pareto_front(noisy, NAMES) == (1, 2)
    found = best_member(noisy, Objective(minimize="kl"))
    assert (found.number, found.tied) == (1, (2,))


def test_the_best_keeps_the_limits():
    figures = {1: row(100, 0.01, top1=0.99), 2: row(50, 0.1, top1=0.95), 3: row(40, 0.2, top1=0.8)}
    limits = {"bytes_on_disk": {"max": 60}, "top1": {"min": 0.9}}
    objective = Objective.model_validate({"minimize": "kl", "subject_to": limits})
    assert best_member(figures, objective) == (2, ())
    assert best_member(figures, Objective(maximize="top1")).number == 1
    hopeless = Objective.model_validate({"minimize": "kl", "subject_to": {"kl": {"max": 0.001}}})
    assert best_member(figures, hopeless) == (None, ())
    unmeasured = Objective.model_validate(
        {"minimize": "kl", "subject_to": {"retention": {"min": 0}}}
    )
    assert best_member(figures, unmeasured).number is None


ROWS = st.dictionaries(
    st.integers(1, 20),
    st.builds(row, st.integers(1, 5), st.sampled_from([0.1, 0.2, 0.3]), st.sampled_from([0.0, 0.02])),
    min_size=1,
)  # fmt: skip


@given(ROWS)
def test_somebody_is_on_the_front_and_the_best_is(figures):
    front = pareto_front(figures, NAMES)
    assert front
    best = best_member(figures, Objective(minimize="kl"))
    assert best.number in figures
    assert {best.number, *best.tied} & set(front), "the best, or one that ties with it"


@given(ROWS, st.integers(21, 30))
def test_a_member_that_is_beaten_changes_nothing(figures, number):
    worst = row(100, 9.0)
    assert pareto_front({**figures, number: worst}, NAMES) == pareto_front(figures, NAMES)
