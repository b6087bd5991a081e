"""What was measured is not measured again: by a run that goes on, and by later runs of the same source."""

import pytest

from spq_core.data.texts import builtin_text
from spq_core.evaluation import scoring
from spq_core.evaluation.known import Shelf
from spq_core.evaluation.settings import EvaluationSettings
from spq_core.models.clean_copy import SourceModel
from spq_core.progress import Silent
from spq_core.recipe.catalog import resolve
from spq_core.workflow.job import compress_and_measure
from tests.models import save_tiny

pytestmark = pytest.mark.usefixtures("_open_gate")
TEXT = builtin_text()


@pytest.fixture
def opened(monkeypatch):
    """Names of the folders whose models were asked for predictions."""
    names = []
    real = scoring.open_predictor

    def noting(folder, *rest):
        names.append(folder.name)
        return real(folder, *rest)

    monkeypatch.setattr(scoring, "open_predictor", noting)
    return names


def run(tmp_path, out, recipe="gptq-4", resume=False, progress=None, **settings):
    scratch = tmp_path / f"scratch-{out}"
    scratch.mkdir(exist_ok=True)
    folder = tmp_path / "source"
    if not folder.exists():
        save_tiny(folder)
    shelf = Shelf(tmp_path / "shelf", tmp_path / "shelf", f"job of {out}")
    evaluation = EvaluationSettings(
        perplexity=(TEXT.name,), length=32, limit=4, **({"throughput": False} | settings)
    )
    return compress_and_measure(
        SourceModel(folder=folder, name="tiny"), resolve(recipe), tmp_path / out,
        texts={TEXT.name: TEXT, "wikitext2": TEXT}, evaluation=evaluation, scratch=scratch,
        progress=progress or Silent(), shelf=shelf, resume=resume,
    )  # fmt: skip


def quality(result):
    return {row.name: row.quality for row in result.rows}


def test_a_later_run_of_the_source_measures_only_its_own_result(tmp_path, opened):
    first = run(tmp_path, "one")
    assert opened == ["source", "int8-baseline", "one"]
    del opened[:]
    again = run(tmp_path, "two")
    assert opened == ["two", "source"], "the source only for its head"
    assert quality(again) == quality(first)
    assert not (tmp_path / "scratch-two" / "int8-baseline").exists(), "nor is INT8 made"
    origins = {row.name: row.origin for row in again.rows}
    assert origins["source"]["by"] == origins["int8"]["by"] == "job of one"
    assert origins["result"] is None
    assert "measured before" in (tmp_path / "two" / "README.md").read_text()
    assert [row.bytes_on_disk for row in again.rows] == [row.bytes_on_disk for row in first.rows]


def test_reuse_can_be_refused_and_other_settings_are_other_figures(tmp_path, opened):
    run(tmp_path, "one")
    del opened[:]
    run(tmp_path, "two", reuse=False)
    assert opened == ["source", "int8-baseline", "two"]
    del opened[:]
    evaluation = {"throughput": False}
    other = run(tmp_path, "three", recipe="int8", **evaluation)
    assert opened == ["three", "source"]
    assert other.rows[0].origin is not None


@pytest.mark.extended
def test_speeds_are_always_measured(tmp_path, opened):
    timed = {"throughput": True, "trials": 1, "prompt_tokens": 8, "new_tokens": 2}
    run(tmp_path, "one", **timed)
    again = run(tmp_path, "two", **timed)
    assert all(row.decode_tokens_per_second for row in again.rows)
    assert opened[3:] == ["two", "source"]


class _Stops(Silent):
    """Stops the run when a phase begins."""

    def __init__(self, at):
        self.at = at

    def begin(self, phase, total, unit):
        if phase.id == self.at:
            raise KeyboardInterrupt


def test_a_run_that_goes_on_measures_what_is_missing(tmp_path, opened):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, "one", progress=_Stops(f"perplexity/{TEXT.name}/result"))
    del opened[:]
    result = run(tmp_path, "one", resume=True)
    assert "int8-baseline" not in opened
    assert opened.count("one") == 1
    assert {row.name for row in result.rows} == {"source", "int8", "result"}
    assert not (tmp_path / "one.figures").exists()
    assert quality(result) == quality(run(tmp_path, "fresh", reuse=False))


def test_what_others_left_stays_where_it_is_though_this_run_is_stopped(tmp_path):
    run(tmp_path, "one")
    left = {
        path.name: path.read_bytes() for path in (tmp_path / "shelf").rglob("*") if path.is_file()
    }
    assert any(name.endswith(".states") for name in left)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, "two", progress=_Stops("perplexity/the first tokens/result"))
    now = {
        path.name: path.read_bytes() for path in (tmp_path / "shelf").rglob("*") if path.is_file()
    }
    assert now == left


def test_figures_that_had_to_be_measured_again_are_not_called_old(tmp_path, opened):
    run(tmp_path, "one")
    for file in (tmp_path / "shelf").rglob("*.states"):
        file.unlink()
    del opened[:]
    again = run(tmp_path, "two")
    assert opened == ["source", "two"]
    origins = {row.name: row.origin for row in again.rows}
    assert origins["source"] is None
    assert origins["int8"] is not None
