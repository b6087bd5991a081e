"""The load gate: what it lets through, and what it stops."""

import errno
import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from spq_core.artifact import load_check
from spq_core.artifact.load_check import compare
from spq_core.artifact.manifest import MANIFEST_FILE
from spq_core.compression.compress import SourceModel, compress
from spq_core.data.texts import builtin_text
from spq_core.machine import machine_failure
from spq_core.recipe.document import parse_recipe
from spq_core.workflow import blocked_load_check, fresh_process
from spq_core.workflow.load_gate import LARGEST_DIFFERENCE, LoadGateError, check_loads, judged
from tests import forked
from tests.marks import every
from tests.models import FAMILIES, save_tiny

WINDOWS = {"dataset": "builtin", "form": "windows", "samples": 4, "length": 64}
SVD = {"type": "svd", "variance": 0.9, "objective": "output"}
RATE = {"type": "quantize", "method": "rate"}
RECIPES = {
    "int8": {"stages": [{"type": "quantize"}]},
    "floats": {"stages": [SVD, {"type": "prune"}], "calibration": WINDOWS},
    "gptq": {
        "stages": [{"type": "quantize", "method": "gptq", "bits": 4, "group_size": 32}],
        "calibration": WINDOWS,
    },
    "gptq-8": {"stages": [{"type": "quantize", "method": "gptq"}], "calibration": WINDOWS},
    "kept-adapters": {
        "stages": [
            {"type": "quantize"},
            {"type": "recover", "adapters": "kept", "steps": 1, "length": 32, "batch": 1},
        ],
        "calibration": WINDOWS,
    },
    "zeros": {"stages": [{"type": "quantize", "bits": 4, "group_size": 32, "symmetric": False}]},
    "rate": {"stages": [SVD, RATE], "target": {"bytes_ratio": 0.4}, "calibration": WINDOWS},
    "paper": {
        "stages": [SVD, {"type": "quantize", "mode": "mix_percentile", "embedding": False}],
        "calibration": WINDOWS,
    },
}


def made(tmp_path, family, recipe):
    source = save_tiny(tmp_path / "source", family, torch.bfloat16)
    compress(
        SourceModel(folder=source, name="tiny"), parse_recipe(RECIPES[recipe]), tmp_path / "out",
        text=builtin_text(), probe_file=tmp_path / "probe",
    )  # fmt: skip
    return tmp_path / "out"


@pytest.mark.parametrize(
    ("family", "recipe"),
    [
        *every(4, [(family, "rate") for family in FAMILIES]),
        *every(
            3,
            [
                (one, recipe)
                for one in ("llama", "gemma2")
                for recipe in sorted(set(RECIPES) - {"rate"})
            ],
        ),
    ],
)
def test_what_is_loaded_computes_what_the_run_had_in_memory(tmp_path, family, recipe):
    folder = made(tmp_path, family, recipe)
    with torch.no_grad():  # the program's own function; the next test runs the program
        found = compare(folder, tmp_path / "probe")
    assert found["logits"] < 0.5 * LARGEST_DIFFERENCE
    assert found["embedding"] < 0.5 * LARGEST_DIFFERENCE
    assert found["decoding"] < 0.05
    if recipe == "floats":  # in memory they had the values that are stored
        assert found["logits"] < 1e-5


def test_a_fresh_process_loads_compares_and_generates(tmp_path):
    found = check_loads(made(tmp_path, "llama", "rate"), tmp_path / "probe")
    assert found.logits < 1e-3


@pytest.mark.parametrize(
    ("family", "recipe"),
    every(3, [("gemma3", "gptq"), ("llama", "rate"), ("gpt2", "int8"), ("opt", "floats"), ("qwen3", "kept-adapters")]),
)  # fmt: skip
def test_an_artifact_larger_than_memory_is_looked_at_layer_by_layer(tmp_path, family, recipe):
    folder = made(tmp_path, family, recipe)
    with torch.no_grad():
        whole = compare(folder, tmp_path / "probe")
        parts = blocked_load_check.compare(folder, tmp_path / "probe", tmp_path / "source")
    assert parts["text"] == []
    for name in ("logits", "decoding", "rounding"):
        assert parts[name] == pytest.approx(whole[name], abs=2e-3)
    assert parts["embedding"] < 0.5 * LARGEST_DIFFERENCE


@pytest.fixture
def _forked(monkeypatch):
    """The gate's program, without the seconds that its imports take."""
    monkeypatch.setattr(fresh_process.subprocess, "run", forked.run)


@pytest.mark.usefixtures("_forked")
def test_what_does_not_fit_is_stopped_like_what_does(tmp_path, monkeypatch):
    monkeypatch.setenv("SPQ_MEMORY_BYTES", "1000")
    folder = made(tmp_path, "llama", "int8")
    assert check_loads(folder, tmp_path / "probe").logits < LARGEST_DIFFERENCE
    spoil(folder, "0.mlp.down_proj.scale", lambda scale: 2 * scale)
    with pytest.raises(LoadGateError, match="logits differ by"):
        check_loads(folder, tmp_path / "probe")


def spoil(folder, ending, change):
    (folder / MANIFEST_FILE).unlink()  # else the digest gives it away
    for file in sorted(folder.glob("*.safetensors")):
        tensors = load_file(file)
        name = next((name for name in sorted(tensors) if name.endswith(ending)), None)
        if name is not None:
            tensors[name] = change(tensors[name])
            save_file(tensors, file, metadata={"format": "pt"})
            return
    raise AssertionError(ending)


@pytest.mark.parametrize(
    ("ending", "change", "words"),
    [
        ("0.mlp.down_proj.scale", lambda scale: 2 * scale, "logits differ by"),
        ("1.mlp.up_proj.codes", lambda codes: codes.roll(1, 0), "logits differ by"),
        ("embed_tokens.codes", lambda codes: codes.roll(1, 1), "embedding differ by"),
        ("model.norm.weight", lambda weight: weight * torch.nan, "differ by nan"),
        ("0.mlp.down_proj.scale", lambda scale: scale[:-1], "does not load in a fresh process"),
    ],
)
@pytest.mark.usefixtures("_forked")
def test_what_computes_something_else_is_stopped(tmp_path, ending, change, words):
    folder = made(tmp_path, "llama", "int8")
    spoil(folder, ending, lambda tensor: change(tensor).contiguous())
    with pytest.raises(LoadGateError, match=words):
        check_loads(folder, tmp_path / "probe")


@pytest.mark.usefixtures("_forked")
def test_a_process_that_dies_is_reported(tmp_path):
    folder = made(tmp_path, "llama", "int8")
    shutil.rmtree(folder)
    with pytest.raises(LoadGateError, match="does not load in a fresh process"):
        check_loads(folder, tmp_path / "probe")


def test_what_rounding_does_to_an_unstable_model_is_no_fault_of_a_kernel(tmp_path):
    artifact = made(tmp_path, "llama", "int8")
    with torch.no_grad():
        found = compare(artifact, tmp_path / "probe")
    assert 0 < found["rounding"] < 0.05
    unstable = found | {"decoding": 0.3, "rounding": 0.25}
    assert judged(unstable).decoding == pytest.approx(0.3)
    with pytest.raises(LoadGateError, match="decoding logits differ by 0.3"):
        judged(unstable | {"rounding": 0.05})


ENDS = {
    "a full disk in its answer": (0, {"error": "OSError: no", "machine": "insufficient_disk"}, ""),
    "a full disk before it": (1, None, "OSError: [Errno 28] No space left on device: 'x'"),
    "little memory in its answer": (
        0, {"error": "RuntimeError: alloc", "machine": "out_of_host_memory"}, "",
    ),
    "killed": (-9, None, ""),
}  # fmt: skip


@pytest.mark.parametrize("end", ENDS)
def test_what_the_machine_lacks_is_not_held_against_the_artifact(tmp_path, monkeypatch, end):
    """Else a disk that is full for a moment would end a job whose artifact is right."""
    code, answer, words = ENDS[end]
    told = "" if answer is None else json.dumps(answer)
    done = subprocess.CompletedProcess([], code, told, words)
    monkeypatch.setattr(subprocess, "run", lambda *_arguments, **_named: done)
    with pytest.raises((OSError, MemoryError)) as error:
        check_loads(tmp_path, tmp_path / "probe")
    failure = machine_failure(error.value)
    assert failure.code == ("insufficient_disk" if "disk" in end else "out_of_host_memory")
    assert failure.may_pass == ("disk" in end)


def test_a_check_without_room_says_so(tmp_path, monkeypatch, capsys):
    def full(*_arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(sys, "argv", ["load_check", str(tmp_path), str(tmp_path / "probe"), "1"])
    load_check.answer(full)
    assert json.loads(capsys.readouterr().out)["machine"] == "insufficient_disk"
