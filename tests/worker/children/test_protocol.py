"""What a run's messages say about when it will be done."""

import json

import pytest

from worker.attempt.telemetry import stage_kind
from worker.children import protocol as child
from worker.children.protocol import PipeProgress

ESTIMATE = {"seconds": {"low": 50, "expected": 100, "high": 300}}


@pytest.fixture
def clock(monkeypatch):
    moments = {"now": 1000.0}
    monkeypatch.setattr(child.time, "monotonic", lambda: moments["now"])
    return moments


def last_message(capsys):
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def work(progress, clock, units, seconds_each):
    for _ in range(units):
        clock["now"] += seconds_each
        progress.advance("")


def test_a_stage_foretells_its_end_by_its_units_so_far(clock, capsys):
    progress = PipeProgress()
    progress.stage("compressing", 10, "blocks")
    work(progress, clock, 2, 3)
    assert last_message(capsys)["stage_left"] is None
    work(progress, clock, 2, 3)
    assert last_message(capsys)["stage_left"] == 18


def test_a_run_ends_as_estimated_but_not_before_its_stage(clock, capsys):
    progress = PipeProgress()
    progress.stage("preflight", 1, "toy")
    assert last_message(capsys)["run_left"] is None
    progress.record("estimate", ESTIMATE)
    progress.stage("compressing", 10, "blocks")
    work(progress, clock, 5, 10)
    assert last_message(capsys)["run_left"] == 50
    work(progress, clock, 4, 14)
    message = last_message(capsys)
    assert message["run_left"] == message["stage_left"] == 11.8  # the estimate was over 6 s ago
    work(progress, clock, 1, 14)
    assert last_message(capsys)["run_left"] is None


@pytest.mark.parametrize(
    ("stage", "kind"),
    [
        ("svd+prune (pass 1/2)", "compressing"),
        ("perplexity on wikitext2", "perplexity"),
        ("load gate", "load gate"),
        ("KL 0.12 is above 0.1: again with more bytes", "other"),
    ],
)
def test_metrics_have_few_names_of_stages(stage, kind):
    assert stage_kind(stage) == kind
