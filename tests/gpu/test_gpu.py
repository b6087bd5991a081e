"""What must hold on a GPU: every recipe, agreement with the CPU, speed of decoding.

Skipped by name where torch sees no CUDA device. `SPQ_TEST_DEVICE=cpu` runs them without one, to try
the suite itself.
"""

import os

import pytest
import torch

from spq_core.artifact.read import load_artifact
from spq_core.compression.compress import compress
from spq_core.data.texts import builtin_text
from spq_core.evaluation.measure import measure
from spq_core.evaluation.settings import EvaluationSettings
from spq_core.formats.int8.linear import Int8Linear
from spq_core.formats.packed.linear import PackedLinear
from spq_core.formats.packing import pack
from spq_core.methods.quantization.grid import choose_grid, round_to_grid
from spq_core.methods.quantization.int8 import quantize_per_channel
from spq_core.models.clean_copy import SourceModel
from spq_core.progress import Silent
from spq_core.recipe.catalog import catalog, resolve
from tests.models import save_tiny, some_ids

DEVICE = os.environ.get("SPQ_TEST_DEVICE", "cuda")
CALIBRATION = {"dataset": "builtin", "samples": 6, "length": 48}
LARGEST_DIFFERENCE = 0.05
"""Of logits in float32, relative to their norm: codes may fall on the other side of a half."""
BYTE = 8
SMALLER = {"target": {"bytes_ratio": 0.7}}

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        DEVICE == "cuda" and not torch.cuda.is_available(), reason="no CUDA device is there"
    ),
]


def made(tmp_path, name, device, place="out"):
    folder = tmp_path / "model"
    if not folder.exists():
        save_tiny(folder, "llama", torch.bfloat16, hidden=192)
    recipe = resolve(name)
    calibration = CALIBRATION | {"form": recipe.calibration.form}
    changes = {"extends": name, "calibration": calibration}
    if recipe.target is not None:
        changes |= SMALLER
    stages = [stage.model_dump(mode="json") for stage in recipe.stages]
    if any(
        stage.get("group_size") for stage in stages
    ):  # which must divide the tiny model's widths
        grouped = [
            stage | ({"group_size": 32} if stage.get("group_size") else {}) for stage in stages
        ]
        changes |= {"stages": grouped}
    out = tmp_path / place
    source = SourceModel(folder=folder, name="tiny")
    compress(source, resolve(changes), out, text=builtin_text(), device=device)
    return out


@pytest.mark.parametrize("name", sorted(catalog()))
def test_a_recipe_gives_on_a_gpu_what_it_gives_on_a_cpu(tmp_path, name):
    here = load_artifact(made(tmp_path, name, "cpu", "here"), torch.float32)
    there = load_artifact(made(tmp_path, name, DEVICE, "there"), torch.float32).to(DEVICE)
    with torch.no_grad():
        wanted = here(some_ids()).logits
        found = there(some_ids().to(DEVICE)).logits.cpu()
    assert float((found - wanted).norm() / wanted.norm()) < LARGEST_DIFFERENCE


@pytest.mark.parametrize("name", ["int8", "balanced", "gptq-4"])
@pytest.mark.parametrize("rows", [1, 8, 128])
def test_products_on_a_gpu_are_those_of_the_cpu(tmp_path, name, rows):
    model = load_artifact(made(tmp_path, name, "cpu"), torch.bfloat16)
    ids = some_ids(rows)
    with torch.no_grad():
        wanted = model(ids).logits.float()
        found = model.to(DEVICE)(ids.to(DEVICE)).logits.float().cpu()
    assert float((found - wanted).norm() / wanted.norm()) < LARGEST_DIFFERENCE


@pytest.mark.skipif(DEVICE == "cpu", reason="about a GPU's memory")
@pytest.mark.parametrize("bits", [8, 4])
def test_decoding_is_not_slower_than_the_source(bits):
    """One token through a layer of an 8B model, against the same layer in bfloat16."""
    weight = torch.randn(14336, 4096) * 0.02
    grid = choose_grid(weight, bits, 64)
    if bits == BYTE:
        quantized = quantize_per_channel(weight)
        ours = Int8Linear.of(quantized.codes, quantized.scale)
    else:
        codes = round_to_grid(weight, grid).codes
        ours = PackedLinear(
            pack(codes, bits), grid.scale.half(), grid.zero, bits=bits, n_in=4096, group_size=64
        )
    source = torch.nn.Linear(4096, 14336, bias=False, dtype=torch.bfloat16)
    seconds = {
        name: seconds_per_token(layer.to(DEVICE))
        for name, layer in {"ours": ours, "source": source}.items()
    }
    assert seconds["ours"] < 1.1 * seconds["source"]


def seconds_per_token(layer):
    x = torch.randn(1, 4096, device=DEVICE, dtype=torch.bfloat16)
    flush = torch.empty(256 << 20, dtype=torch.int8, device=DEVICE)
    found = []
    with torch.no_grad():
        for _ in range(30):
            flush.zero_()  # weights do not wait in a cache between tokens
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            layer(x)
            stop.record()
            torch.cuda.synchronize()
            found.append(start.elapsed_time(stop))
    return sorted(found)[len(found) // 2]


def test_measuring_on_a_gpu_agrees_with_measuring_on_a_cpu(tmp_path):
    out = made(tmp_path, "int8", DEVICE)
    settings = EvaluationSettings(perplexity=("builtin",), limit=4, length=64, throughput=False)
    folders, texts = {"source": tmp_path / "model", "result": out}, {"builtin": builtin_text()}
    before, after = (
        measure(folders, texts, settings, Silent(), reference="source", device=device)
        .models["result"]
        .quality["builtin"]
        for device in ("cpu", DEVICE)
    )
    assert after["perplexity"] == pytest.approx(before["perplexity"], rel=0.02)
    assert after["top1"] == pytest.approx(before["top1"], abs=0.05)
