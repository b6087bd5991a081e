"""What measuring does not achieve, it does not destroy."""

import errno
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from spq_core.artifact.manifest import read_manifest, verify_files
from spq_core.data.texts import builtin_text
from spq_core.errors import DiskSpaceError, MemoryNeededError, StateMismatchError
from spq_core.evaluation.settings import EvaluationSettings
from spq_core.models.clean_copy import SourceModel
from spq_core.progress import Silent
from spq_core.recipe.catalog import resolve
from spq_core.workflow import measuring as run_module
from spq_core.workflow.card import figures_table
from spq_core.workflow.finished import finished_run, note_path
from spq_core.workflow.job import compress_and_measure
from spq_core.workflow.measuring import MOST_MEASURINGS
from spq_core.workflow.result import UnmeasuredError
from tests.marks import every
from tests.models import save_tiny

SETTINGS = EvaluationSettings(perplexity=("builtin",), limit=1, length=64, trials=1, new_tokens=4)
GATED = {"extends": "int8", "gates": {"max_kl": 1.0}}


class Killed(BaseException):
    """Nobody catches it, as nobody catches SIGKILL."""


def go(tmp_path, recipe="int8", **more):
    folder = tmp_path / "model"
    if not folder.exists():
        save_tiny(folder, dtype=torch.bfloat16)
    scratch = tmp_path / "scratch"
    scratch.mkdir(exist_ok=True)
    return compress_and_measure(
        SourceModel(folder=folder, name="tiny"), resolve(recipe), tmp_path / "out",
        texts={"builtin": builtin_text()}, evaluation=SETTINGS, scratch=scratch,
        progress=Silent(), **more,
    )  # fmt: skip


def breaks(monkeypatch, error):
    def measure(*_args, **_named):
        raise error

    monkeypatch.setattr(run_module, "measure", measure)


ERRORS = {
    "out_of_host_memory": MemoryError(),
    "out_of_gpu_memory": torch.OutOfMemoryError("CUDA out of memory."),
    "internal": ZeroDivisionError("a bug"),
}


@pytest.mark.parametrize("code", every(3, list(ERRORS)))
def test_the_artifact_stays_and_the_result_says_what_is_missing(tmp_path, monkeypatch, code):
    breaks(monkeypatch, ERRORS[code])
    result = go(tmp_path)
    assert result.missing.code == code
    assert result.measurement is None
    document = json.loads(json.dumps(result.document()))
    assert (document["evaluation"], document["rows"]) == (None, [])
    verify_files(tmp_path / "out", read_manifest(tmp_path / "out"))
    assert "No figures" in (tmp_path / "out" / "README.md").read_text()
    result.check_gates()


def test_gates_cannot_be_judged_without_figures(tmp_path, monkeypatch):
    breaks(monkeypatch, MemoryError())
    result = go(tmp_path, GATED)
    with pytest.raises(UnmeasuredError, match="finished and kept.*too little memory"):
        result.check_gates()
    assert (tmp_path / "out" / "config.json").is_file()


def test_a_full_disk_is_tried_once_more_and_compresses_nothing_again(tmp_path, monkeypatch):
    measure = run_module.measure
    breaks(monkeypatch, OSError(errno.ENOSPC, "full"))
    with pytest.raises(OSError, match="full"):
        go(tmp_path)
    made = (tmp_path / "out" / "config.json").stat().st_mtime_ns
    monkeypatch.setattr(run_module, "measure", measure)
    result = go(tmp_path, resume=True)
    assert result.measurement is not None
    assert (tmp_path / "out" / "config.json").stat().st_mtime_ns == made
    assert not note_path(tmp_path / "out").exists()


def test_a_run_that_dies_while_it_measures_gives_up_measuring_and_nothing_else(
    tmp_path, monkeypatch
):
    breaks(monkeypatch, Killed())
    for number in range(MOST_MEASURINGS):
        with pytest.raises(Killed):
            go(tmp_path, resume=bool(number))
    assert finished_run(tmp_path / "out", resolve("int8")).measurings == MOST_MEASURINGS
    result = go(tmp_path, resume=True)
    assert result.missing.code == "evaluation_killed"
    verify_files(tmp_path / "out", read_manifest(tmp_path / "out"))


def test_what_another_recipe_finished_is_not_taken_for_this_ones(tmp_path, monkeypatch):
    breaks(monkeypatch, Killed())
    with pytest.raises(Killed):
        go(tmp_path)
    assert finished_run(tmp_path / "out", resolve("gptq-8")) is None


def test_a_disk_that_is_too_small_is_found_out_before_the_start(tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("spq_core.estimate.room.shutil.disk_usage", lambda _path: usage)
    with pytest.raises(DiskSpaceError, match="0.0 GB free") as refused:
        go(tmp_path)
    assert refused.value.code == "insufficient_disk"


def test_too_little_memory_is_found_out_before_the_start(tmp_path, monkeypatch):
    monkeypatch.setenv("SPQ_MEMORY_BYTES", "100000000")
    with pytest.raises(
        MemoryNeededError, match=r"needs about \d\.\d GB of memory, and may use 0\.1 GB"
    ):
        go(tmp_path)
    assert not (tmp_path / "out").exists()


def test_with_memory_for_one_model_there_are_figures_and_no_speeds(tmp_path, monkeypatch):
    monkeypatch.setattr("spq_core.evaluation.speeds.fits", lambda stored: stored < 1)
    result = go(tmp_path)
    assert result.missing is None
    assert all(row.decode_tokens_per_second is None for row in result.rows)
    assert all(row.resident_bytes is None for row in result.rows)
    assert all(row.perplexity > 1 for row in result.rows)
    assert "| – |" in figures_table([row.document() for row in result.rows])


def test_what_was_finished_of_other_weights_is_refused_and_stays(tmp_path, monkeypatch):
    breaks(monkeypatch, Killed())
    with pytest.raises(Killed):
        go(tmp_path)
    made = (tmp_path / "out" / "model-00001-of-00004.safetensors").read_bytes()
    weights = load_file(tmp_path / "model" / "model.safetensors")
    doubled = {name: tensor * 2 for name, tensor in weights.items()}
    save_file(doubled, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(StateMismatchError, match="finished artifact of other weights"):
        go(tmp_path, resume=True)
    assert (tmp_path / "out" / "model-00001-of-00004.safetensors").read_bytes() == made


def test_whoever_interrupts_a_measurement_may_do_so_as_often_as_they_like(tmp_path, monkeypatch):
    with monkeypatch.context() as broken:
        breaks(broken, KeyboardInterrupt())
        for attempt in range(MOST_MEASURINGS + 1):
            with pytest.raises(KeyboardInterrupt):
                go(tmp_path, resume=attempt > 0)
    result = go(tmp_path, resume=True)
    assert result.missing is None
    assert result.rows
