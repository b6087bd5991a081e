"""What a run's messages say about when it will be done."""

import json

import pytest

from spq_core.progress import OnBehalf, Phase, PhaseKind
from worker.children import protocol as child
from worker.children.protocol import PipeProgress

COMPRESSING = Phase(PhaseKind.COMPRESSING, "pass-1", "svd (pass 1/1)")
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
    progress.begin(COMPRESSING, 10, "blocks")
    work(progress, clock, 2, 3)
    assert last_message(capsys)["phase_left"] is None
    work(progress, clock, 2, 3)
    assert last_message(capsys)["phase_left"] == 18


def test_a_run_ends_as_estimated_but_not_before_its_stage(clock, capsys):
    progress = PipeProgress()
    progress.begin(Phase(PhaseKind.PREFLIGHT, "preflight", "preflight"), 1, "toy")
    assert last_message(capsys)["run_left"] is None
    progress.record("estimate", ESTIMATE)
    progress.begin(COMPRESSING, 10, "blocks")
    work(progress, clock, 5, 10)
    assert last_message(capsys)["run_left"] == 50
    work(progress, clock, 4, 14)
    message = last_message(capsys)
    assert message["run_left"] == message["phase_left"] == 11.8  # the estimate was over 6 s ago
    work(progress, clock, 1, 14)
    assert last_message(capsys)["run_left"] is None


def test_work_beside_the_main_one_is_named_after_it(capsys):
    beside = OnBehalf(PipeProgress(), "plain INT8")
    beside.begin(COMPRESSING, 3, "blocks")
    told = last_message(capsys)["phase"]
    assert told == {
        "kind": "compressing", "id": "plain INT8/pass-1", "title": "plain INT8: svd (pass 1/1)",
    }  # fmt: skip
    beside.record("estimate", ESTIMATE)
    for _ in range(3):
        beside.advance("")
    assert last_message(capsys)["run_left"] is None
