"""Whole models of matrices at chosen widths, against models that really have these weights."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from spq_core.compression.compress import SourceModel, compress
from spq_core.compression.width_database import WidthDatabase
from spq_core.data.texts import builtin_text
from spq_core.errors import RecipeError
from spq_core.methods.quantization.settings import QuantizeSettings
from spq_core.models.checkpoint import open_checkpoint
from spq_core.models.skeleton import load_skeleton
from spq_core.progress import Silent
from spq_core.recipe.document import parse_recipe
from spq_core.streaming.sensitivity import measure_sensitivity
from tests.models import VOCABULARY, save_tiny

LEVELS = (3, 4, 8)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def filled(source, tmp_path_factory):
    settings = QuantizeSettings(type="quantize", method="gptq", levels=LEVELS)
    rows = torch.randint(3, VOCABULARY, (3, 40), generator=torch.Generator().manual_seed(5))
    folder = tmp_path_factory.mktemp("widths")
    skeleton, checkpoint = load_skeleton(source), open_checkpoint(source)
    database = WidthDatabase(folder / "all", skeleton, checkpoint, settings, rows)
    scratch = folder / "states"
    measure_sensitivity(skeleton, checkpoint, rows, scratch, Silent(), database.visit)
    return database


def names(database):
    layers = range(database.skeleton.n_layers)
    return [
        (index, f"{database.skeleton.layer_path(index)}.{name}", name)
        for index in layers
        for name in sorted({part.rpartition(".")[0] for part in stored(database, index)})
    ]


def stored(database, index):
    return load_file(database.folder / f"layer-{index}.safetensors")


def divergence(database, source, widths, n_rows):
    """By the textbook, from whole models."""
    model, plain = (AutoModelForCausalLM.from_pretrained(source) for _ in range(2))
    for index, full, name in names(database):
        weight = stored(database, index)[f"{name}.{widths[full]}"]
        model.get_submodule(full).weight.data = weight.float()
    rows = database.rows[:n_rows]
    with torch.no_grad():
        wanted, found = (one(rows).logits.log_softmax(-1) for one in (plain, model))
    return float((wanted.exp() * (wanted - found)).sum(-1).mean())


def test_candidates_are_as_far_as_models_with_their_weights(filled, source):
    full = [name for _, name, _ in names(filled)]
    mixed = {name: LEVELS[number % 3] for number, name in enumerate(full)}
    candidates = [dict.fromkeys(full, 3), mixed, dict.fromkeys(full, 8)]
    found = filled.divergences(candidates, 2)
    wanted = [divergence(filled, source, one, 2) for one in candidates]
    assert found == pytest.approx(wanted, rel=2e-3, abs=1e-7)
    assert found[0] > found[1] > found[2]


@pytest.mark.parametrize("allocation", ["fit", "evolution"])
def test_a_recipe_with_it_keeps_to_its_bytes(source, tmp_path, allocation):
    class Told(Silent):
        said: list = []  # noqa: RUF012 - of one test

        def record(self, kind, data):
            if kind == "evolution":
                self.said.append(data["kl"])

    recipe = parse_recipe(
        {
            "stages": [{"type": "quantize", "method": "gptq", "levels": LEVELS}],
            "target": {"bytes_ratio": 0.45, "allocation": allocation, "generations": 3},
            "calibration": {"dataset": "builtin", "form": "windows", "samples": 8, "length": 64},
        }
    )
    model = SourceModel(folder=source, name="tiny")
    told = Told()
    report = compress(model, recipe, tmp_path / "out", text=builtin_text(), progress=told)
    assert report.artifact_bytes <= 0.45 * report.source_bytes / 2 * 1.02  # float32 counts half
    widths = {one.figures["bits"] for one in report.modules if one.stage == "quantize"}
    assert len(widths) > 1
    if allocation == "evolution":
        (history,) = told.said
        assert history == sorted(history, reverse=True)
    assert not (tmp_path / "out.spool").exists()


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        ({"type": "quantize", "method": "entropy"}, "does not share out bits by entropy"),
        ({"type": "svd", "variance": "auto"}, "shares out widths"),
    ],
)
def test_what_has_no_widths_is_refused(stage, words):
    with pytest.raises(RecipeError, match=words):
        parse_recipe({"stages": [stage], "target": {"bytes_ratio": 0.5, "allocation": "fit"}})
