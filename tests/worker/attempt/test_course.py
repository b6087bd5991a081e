"""How far a job is: it never goes back, and says which stage it is at."""

import time

import pytest

from spq_core.estimate.stages import Stage
from worker.attempt.course import Course
from worker.children.messages import Phase, Progressed

PLANNED = (
    Stage("download", "download the model", "prepare"), Stage("compress", "compress", "recipe"),
    Stage("recover", "recover", "recipe"), Stage("measure", "measure", "measure"),
)  # fmt: skip


def told(phase, done=0, total=10, run_left=None):
    known = Phase(kind="other", id=phase, title=phase)
    return Progressed(
        phase=known, done=done, total=total, unit="blocks", message="", run_left=run_left
    )


def test_stages_begin_and_end_and_are_written_into_the_log():
    lines = []
    course = Course(PLANNED, lines.append)
    first = course.take(told("downloading", 10))
    assert first["stage_id"] == "download"
    assert first["stages"]["download"]["ended_at"] is None
    second = course.take(told("pass-1", 3))
    assert second["stages"]["download"]["ended_at"] is not None
    assert (second["stages"]["compress"]["done"], second["stages"]["compress"]["total"]) == (3, 10)
    course.take(told("recovery"))
    back = course.take(told("pass-2", 1))
    assert back["stage_id"] == "compress"
    assert back["stages"]["compress"]["ended_at"] is None, "it goes on"
    assert back["stages"]["compress"]["started_at"] == second["stages"]["compress"]["started_at"]
    course.take(told("perplexity/builtin/source"))
    course.end()
    assert lines[0] == "stage 1 of 4: download the model"
    assert lines[1].startswith("download the model: done after ")
    assert lines[2] == "stage 2 of 4: compress"
    assert lines[-1].startswith("measure: done after ")


def test_the_whole_never_goes_back():
    course = Course(PLANNED, lambda _line: None)
    reports = [
        told("downloading", 5), told("pass-1", 0), told("pass-1", 9), told("pass-2", 0),
        told("pass-2", 1, run_left=3600.0), told("recovery", 1, run_left=1e-6), told("pass-3", 0),
        told("perplexity/a/b", 10),
    ]  # fmt: skip
    found = [course.take(one)["overall_fraction"] for one in reports]
    assert found == sorted(found)
    assert 0 < found[0] < found[2] < 1
    assert found[-1] < 1, "it has not ended"


def test_stages_count_by_what_they_cost():
    planned = (
        Stage("download", "d", "prepare", cost=1.0), Stage("compress", "c", "recipe", cost=6.0),
        Stage("measure", "m", "measure", cost=3.0, phases=3),
    )  # fmt: skip
    course = Course(planned, lambda _line: None)
    shares = [
        course.take(one)["overall_fraction"]
        for one in (
            told("downloading", 10), told("pass-1", 5), told("perplexity/a/source", 10), told("perplexity/a/int8", 5),
        )
    ]  # fmt: skip
    assert shares == [0.1, 0.4, 0.8, 0.85]


def test_what_is_left_follows_the_pace_and_not_an_estimate_that_was_wrong():
    course = Course(PLANNED, lambda _line: None, _began=time.monotonic())
    first = told("downloading", 1, run_left=60.0)
    course.take(first)
    assert course.left(first) == 60.0, "nothing else is known yet"
    later = Course(PLANNED, lambda _line: None, _began=time.monotonic() - 300)
    half = told("pass-1", 10, run_left=1.0)
    later.take(half)
    assert later.left(half) == pytest.approx(300, abs=5)


def test_what_says_nothing_about_a_stage_leaves_it_as_it_is():
    course = Course(PLANNED, lambda _line: None)
    assert course.take(told("something new"))["stage_id"] is None
    course.take(told("pass-1"))
    assert course.take(told("something new"))["stage_id"] == "compress"
