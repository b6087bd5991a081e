"""A sweep on a tiny model: what is shared, what stays, and how it goes on."""

import csv
import json
import shutil

import pytest
from click.testing import CliRunner

from spq_core.artifact.manifest import read_manifest
from spq_core.cli.sweep import sweep_command
from spq_core.compression import compress as compression
from spq_core.data.texts import builtin_text
from spq_core.errors import StateMismatchError
from spq_core.evaluation import scoring
from spq_core.evaluation.known import Shelf
from spq_core.evaluation.settings import EvaluationSettings
from spq_core.models.clean_copy import SourceModel
from spq_core.progress import Silent
from spq_core.sweep.document import parse_sweep
from spq_core.workflow.sweep import run_sweep
from tests.models import save_tiny

pytestmark = pytest.mark.usefixtures("_open_gate")
TEXT = builtin_text()
CALIBRATION = {"dataset": "builtin", "samples": 4, "length": 32}
SIZES = {
    "name": "sizes",
    "grid": [
        {
            "base": {"extends": "small", "calibration": CALIBRATION},
            "over": {"target.bytes_ratio": [0.6, 0.5, 0.45]},
        }
    ],
}


def run(tmp_path, document=SIZES, out="out", progress=None, **settings):
    folder, scratch = tmp_path / "source", tmp_path / f"scratch-{out}"
    if not folder.exists():
        save_tiny(folder)
    scratch.mkdir(exist_ok=True)
    evaluation = EvaluationSettings(
        perplexity=(TEXT.name,), length=32, limit=8, throughput=False, tuned_control=False, **settings
    )  # fmt: skip
    return run_sweep(
        SourceModel(folder=folder, name="tiny"), parse_sweep(document), tmp_path / out,
        texts=lambda _name: TEXT, evaluation=evaluation, scratch=scratch,
        progress=progress or Silent(), shelf=Shelf(tmp_path / "shelf", tmp_path / "shelf", out),
    )  # fmt: skip


@pytest.fixture
def work(monkeypatch):
    """Walks over the source, and models that were asked for predictions."""
    seen = {"walks": 0, "asked": []}
    look, open_predictor = compression.look, scoring.open_predictor

    def counted(*arguments, **named):
        seen["walks"] += 1
        return look(*arguments, **named)

    def noted(folder, *rest):
        seen["asked"].append(folder.name)
        return open_predictor(folder, *rest)

    monkeypatch.setattr(compression, "look", counted)
    monkeypatch.setattr(scoring, "open_predictor", noted)
    return seen


@pytest.mark.extended
def test_members_share_what_they_have_in_common_and_differ_in_nothing_else(tmp_path, work):
    state = run(tmp_path, SIZES | {"keep": "all"})
    assert work["walks"] == 1
    assert work["asked"].count("int8-baseline") == 1
    assert len(state.figures) == 3
    sizes = [state.figures[number]["bytes_on_disk"] for number in (1, 2, 3)]
    assert sizes == sorted(sizes, reverse=True)
    alone = run(tmp_path, SIZES | {"keep": "all"}, out="alone", reuse=False)
    assert work["walks"] == 4
    for number in (1, 2, 3):
        mine, theirs = state.figures[number], alone.figures[number]
        assert {**mine, "seconds": 0} == {**theirs, "seconds": 0}
        folders = (tmp_path / out / f"{number:02d}-small-custom" for out in ("out", "alone"))
        one, other = (read_manifest(folder).files for folder in folders)
        assert one == other


@pytest.mark.extended
def test_figures_of_all_stay_and_artifacts_as_asked_for(tmp_path):
    beaten = {"extends": "small", "calibration": CALIBRATION, "target": {"bytes_ratio": 0.6}}
    worse = beaten | {"stages": [{"type": "quantize", "method": "entropy", "embedding": False}]}
    state = run(tmp_path, {"recipes": ["int8", beaten, "spq-paper", worse], "keep": "best"})
    document = json.loads((tmp_path / "out" / "sweep.json").read_text())
    assert document["best"] == state.verdict.best
    folders = sorted(path.name for path in (tmp_path / "out").iterdir() if path.is_dir())
    assert folders == [f"{document['best']:02d}-" + next(
        one["fields"]["recipe"] for one in document["members"] if one["number"] == document["best"]
    )]  # fmt: skip
    table = (tmp_path / "out" / "members.csv").read_text().splitlines()
    rows = list(csv.DictReader(table))
    assert [row["number"] for row in rows] == [str(one.number) for one in state.members]
    done = [row for row in rows if row["status"] == "succeeded"]
    assert all(float(row["kl"]) >= 0 for row in done)
    assert set(document["beside"]) == {"source", "int8"}


def test_a_member_that_fails_keeps_nobody_from_being_made_and_is_tried_again(tmp_path, work):
    trained = {"type": "recover", "steps": 2, "batch": 2, "length": 32, "adapters": "kept", "trains": ["embedding"]}  # fmt: skip
    impossible = {"stages": [{"type": "quantize"}, trained], "calibration": CALIBRATION}
    hopeless = {"extends": "small", "calibration": CALIBRATION, "target": {"bytes_ratio": 0.01}}
    recipes = [impossible, hopeless, "int8"]
    state = run(tmp_path, {"recipes": recipes})
    outcomes = [one["status"] for one in state.document()["members"]]
    assert outcomes == ["failed", "skipped", "succeeded"]
    assert "embedding" in state.document()["members"][0]["error"]["message"]
    assert "at least" in state.document()["members"][1]["error"]["message"]
    del work["asked"][:]
    again = run(tmp_path, {"recipes": recipes})
    assert work["asked"] == [], "what is done is not done again"
    assert again.figures == state.figures


class _Stops(Silent):
    def __init__(self, times):
        self.times = times

    def begin(self, phase, total, unit):
        if phase.id.endswith("/result"):
            self.times -= 1
            if not self.times:
                raise KeyboardInterrupt


def test_an_interrupted_sweep_goes_on_with_what_is_not_done(tmp_path, work):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, progress=_Stops(3))  # while the second member is measured
    done = json.loads((tmp_path / "out" / "sweep.json").read_text())
    assert [one["status"] for one in done["members"]] == ["succeeded", "waiting", "waiting"]
    state = run(tmp_path)
    assert len(state.figures) == 3
    assert work["walks"] == 1
    with pytest.raises(StateMismatchError, match="another sweep"):
        run(tmp_path, SIZES | {"keep": "none"})


def test_figures_of_other_weights_are_not_taken_for_these(tmp_path):
    run(tmp_path, {"recipes": ["int8"]})
    shutil.rmtree(tmp_path / "source")
    save_tiny(tmp_path / "source", "qwen2")
    with pytest.raises(StateMismatchError, match="of other weights or texts"):
        run(tmp_path, {"recipes": ["int8"]})
    (tmp_path / "out" / "sweep.json").write_text("[")
    with pytest.raises(StateMismatchError, match="cannot be read"):
        run(tmp_path, {"recipes": ["int8"]})


def test_the_command_shows_a_table_and_says_what_was_chosen(tmp_path):
    save_tiny(tmp_path / "source")
    (tmp_path / "sizes.yaml").write_text(
        json.dumps(SIZES | {"objective": {"minimize": "kl", "subject_to": {"bytes_ratio": {"max": 0.55}}}})
    )  # fmt: skip
    arguments = [str(tmp_path / "source"), str(tmp_path / "sizes.yaml"), "--dataset", "builtin",
                 "--windows", "4", "--length", "32"]  # fmt: skip
    told = CliRunner().invoke(sweep_command, [*arguments, "--dry-run"])
    assert told.exit_code == 0, told.output
    assert told.output.count("small-custom: target.bytes_ratio") == 3
    done = CliRunner().invoke(sweep_command, [*arguments, "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert "Lowest kl with bytes_ratio at most 0.55: member" in done.output, done.output[-1500:]
    assert "A try, not a result" in done.output
    assert "It is the best of 3 on the text that chose it" in done.output
    (tmp_path / "none.yaml").write_text(
        json.dumps({"recipes": ["int8"], "objective": {"minimize": "kl", "subject_to": {"kl": {"max": 0.0}}}})
    )  # fmt: skip
    arguments[1] = str(tmp_path / "none.yaml")
    none = CliRunner().invoke(sweep_command, [*arguments, "--out", str(tmp_path / "none")])
    assert none.exit_code == 7
    assert "none keeps the limits" in none.output


def test_members_that_need_not_be_made_are_skipped_and_say_why(tmp_path, work):
    limits = {"minimize": "kl", "subject_to": {"bytes_ratio": {"max": 0.28}}}  # of float32
    state = run(tmp_path, SIZES | {"objective": limits, "early_stop": {"target": 100.0}})
    told = [(one["status"], one.get("stopped")) for one in state.document()["members"]]
    assert told == [("skipped", "infeasible"), ("succeeded", None), ("skipped", "target")]
    table = (tmp_path / "out" / "members.csv").read_text().splitlines()
    assert [row["stopped"] for row in csv.DictReader(table)] == ["infeasible", "", "target"]


@pytest.mark.extended
def test_the_smallest_that_keeps_a_limit_is_searched_for(tmp_path):
    search = {
        "method": "bisect", "base": SIZES["grid"][0]["base"], "field": "target.bytes_ratio",
        "low": 0.45, "high": 0.6, "tolerance": 0.04,
    }  # fmt: skip
    ends = run(tmp_path, {"search": search | {"tolerance": 0.15}, "objective": {
        "minimize": "bytes_on_disk", "subject_to": {"kl": {"max": 1.0}}}}, out="ends")  # fmt: skip
    kls = [row["kl"] for row in ends.figures.values()]
    limit = sum(kls) / 2
    objective = {"minimize": "bytes_on_disk", "subject_to": {"kl": {"max": limit}}}
    state = run(tmp_path, {"search": search, "objective": objective})
    values = {one.number: one.fields["target.bytes_ratio"] for one in state.members}
    assert list(values.values())[:3] == [0.6, 0.45, 0.525]
    best = values[state.verdict.best]
    assert all(
        value >= best or state.figures[number]["kl"] > limit for number, value in values.items()
    )
    again = run(tmp_path, {"search": search, "objective": objective})
    assert again.document() == state.document()
