"""What so much text can show, in words."""

import pytest

from spq_core.evaluation.certainty import compared_with_source, student_t, warning


@pytest.mark.parametrize(
    ("freedom", "table"),
    [(1, 12.706), (2, 4.303), (3, 3.182), (5, 2.571), (10, 2.228), (30, 2.042), (1000, 1.962)],
)
def test_quantiles_are_those_of_the_tables(freedom, table):
    assert student_t(freedom) == pytest.approx(table, rel=0.01)


@pytest.mark.parametrize(
    ("ratio", "error", "windows", "words"),
    [
        (1.02, 0.005, 30, "+2.00% ± 0.50%, worse"),
        (0.98, 0.005, 30, "-2.00% ± 0.50%, better"),
        (1.002, 0.005, 30, "+0.20% ± 0.50%, no difference shown"),
        (1.02, 0.005, 2, "+2.00% ± 0.50%, no difference shown"),
        (1.02, None, 1, "+2.00%, too little text to tell"),
    ],
)
def test_a_difference_is_one_only_where_the_text_shows_it(ratio, error, windows, words):
    row = {"perplexity_ratio": ratio, "perplexity_ratio_se": error, "windows": windows}
    assert compared_with_source(row) == words


def test_the_source_is_not_compared_with_itself():
    assert compared_with_source({"perplexity_ratio": None, "windows": 30}) is None


def test_two_short_windows_are_no_result():
    assert "254 predicted tokens in 2 windows" in warning({"windows": 2, "tokens": 254})
    assert warning({"windows": 7, "tokens": 7000}) is not None
    assert warning({"windows": 300, "tokens": 300_000}) is None
    assert warning({}) is None, "measured by an earlier version"
