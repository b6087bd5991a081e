"""Figures of tasks from single answers."""

import math
import statistics

import pytest

from spq_core.evaluation.tasks.answers import retention, task_figures
from spq_core.evaluation.tasks.table import tasks_table

SOURCE = [1.0, 1.0, 1.0, 0.0, 0.0, 1.0, 0.0, 1.0]
MODEL = [1.0, 0.0, 1.0, 0.0, 1.0, 1.0, 0.0, 0.0]


def test_a_score_its_error_the_paired_difference_and_flips():
    figures = task_figures({"acc": MODEL}, {"acc": SOURCE}, 0.25)
    assert figures["acc"] == 0.5
    assert figures["acc_se"] == pytest.approx(statistics.stdev(MODEL) / math.sqrt(8))
    changes = [one - other for one, other in zip(MODEL, SOURCE, strict=True)]
    assert figures["acc_change"] == pytest.approx(-0.125)
    assert figures["acc_change_se"] == pytest.approx(statistics.stdev(changes) / math.sqrt(8))
    assert figures["acc_flips"] == 3 / 8, "two got worse and one better: the mean hides that"
    assert (figures["chance"], figures["questions"]) == (0.25, 8)


def test_the_source_has_nothing_to_be_compared_with():
    figures = task_figures({"acc": SOURCE}, None, None)
    assert set(figures) == {"acc", "acc_se", "chance", "questions"}


def test_retention_is_one_for_the_source_and_nothing_for_guessing():
    source, chances = {"a": 0.6, "b": 0.5}, {"a": 0.2, "b": 0.25}
    assert retention(source, source, chances) == pytest.approx(1.0)
    assert retention(chances, source, chances) == pytest.approx(0.0)
    half = {"a": 0.4, "b": 0.375}
    assert retention(half, source, chances) == pytest.approx(0.5)
    assert retention({"a": 0.3}, {"a": 0.2}, {"a": 0.25}) is None, "the source only guesses"


def test_an_answer_that_is_no_number_leaves_no_figure_and_counts_as_flipped():
    figures = task_figures({"acc": [math.nan, *MODEL[1:]]}, {"acc": SOURCE}, 0.25)
    assert figures["acc"] is figures["acc_se"] is figures["acc_change"] is None
    assert figures["acc_flips"] == 4 / 8


def row(name, figures, kept=None):
    return {"name": name, "tasks": {"quiz": figures}, "retention": kept}


def test_a_table_says_whether_questions_show_a_difference():
    source = task_figures({"acc": SOURCE * 50}, None, 0.25)
    worse = task_figures({"acc": [0.0] * 400}, {"acc": SOURCE * 50}, 0.25)
    table = tasks_table([row("source", source), row("result", worse, 0.1)])
    assert "| quiz (acc) | 400 | 25.0% |" in table
    assert "worse; 62.5% flipped" in table
    assert "| retention |" in table
    few = task_figures({"acc": MODEL}, {"acc": SOURCE}, 0.25)
    table = tasks_table([row("source", task_figures({"acc": SOURCE}, None, 0.25)), row("r", few)])
    assert "no difference shown" in table
    assert "A try, not a result: 8 questions" in table
    assert tasks_table([{"name": "source"}]) == ""
