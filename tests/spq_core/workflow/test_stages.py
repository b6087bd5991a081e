"""Planned stages: every phase that a run reports belongs to one of them."""

import pytest

from spq_core.data.texts import builtin_text
from spq_core.estimate.stages import planned_stages, requested_stages, stage_of
from spq_core.evaluation.settings import EvaluationSettings
from spq_core.models.clean_copy import SourceModel
from spq_core.progress import Silent
from spq_core.recipe.catalog import resolve
from spq_core.workflow.job import compress_and_measure
from tests.models import save_tiny

CALIBRATION = {"dataset": "builtin", "form": "windows", "samples": 4, "length": 32}
EVALUATION = EvaluationSettings(
    perplexity=("builtin",), length=32, limit=1, trials=1, new_tokens=2, prompt_tokens=4
)


class Phases(Silent):
    def __init__(self):
        self.ids = []

    def begin(self, phase, total, unit):
        self.ids.append(phase.id)


@pytest.mark.usefixtures("_open_gate")
@pytest.mark.parametrize(
    "request_",
    [
        "int8",
        {"extends": "small", "calibration": CALIBRATION},
        {"stages": [{"type": "quantize"}, {"type": "recover", "adapters": "kept", "steps": 1, "length": 32, "batch": 1}],
         "calibration": CALIBRATION},
    ],
)  # fmt: skip
def test_what_is_planned_is_what_a_run_reports_in_this_order(tmp_path, request_):
    recipe = resolve(request_)
    phases = Phases()
    (tmp_path / "scratch").mkdir()
    compress_and_measure(
        SourceModel(folder=save_tiny(tmp_path / "source"), name="tiny"), recipe, tmp_path / "out",
        texts={"builtin": builtin_text()}, evaluation=EVALUATION, scratch=tmp_path / "scratch",
        progress=phases,
    )  # fmt: skip
    reported = list(dict.fromkeys(stage_of(one) for one in phases.ids))
    planned = [
        one.id for one in planned_stages(recipe, EVALUATION, downloads=False, publishes=False)
    ]
    assert None not in reported, phases.ids
    assert reported == planned, "each begins behind the one before"


def test_a_job_that_only_measures_compresses_nothing():
    planned = planned_stages(
        resolve("small"),
        EvaluationSettings(tasks=("gsm8k",)),
        downloads=True,
        publishes=True,
        compresses=False,
    )
    assert [one.id for one in planned] == [
        "download",
        "int8",
        "speed",
        "measure",
        "tasks",
        "publish",
    ]


def test_documents_of_another_version_have_no_plan():
    recipe = resolve("int8").document()
    good = {"model": {"repo_id": "a/b"}, "evaluation": {}}
    assert requested_stages(recipe, good)[0].id == "download"
    for request in ({}, good | {"evaluation": {"perplexity": []}}, {"evaluation": {}}):
        assert requested_stages(recipe, request) == ()
    assert requested_stages({"stages": 1}, good) == ()
