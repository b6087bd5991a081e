"""Whole models of parts at chosen levels, against models that really have these weights."""

import tempfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from spq_core.compression.compress import SourceModel, compress
from spq_core.compression.level_database import LevelDatabase
from spq_core.compression.survey import Survey
from spq_core.data.texts import builtin_text
from spq_core.errors import RecipeError
from spq_core.methods.pruning.levels import pruned_at
from spq_core.methods.quantization.settings import QuantizeSettings
from spq_core.methods.svd.levels import truncated_at
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
    database = LevelDatabase(folder / "all", skeleton, checkpoint, (settings,), rows)
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


PRUNE = {
    "type": "prune", "score": "obs", "layer_ratios": "loss", "update": "least_squares",
    "max_ratio": "auto",
}  # fmt: skip
SVD = {"type": "svd", "objective": "loss", "variance": "auto", "modules": "attention"}


def structural(*stages, **target):
    return parse_recipe(
        {
            "stages": list(stages), "target": {"bytes_ratio": 0.75, "generations": 3} | target,
            "calibration": {"dataset": "builtin", "form": "windows", "samples": 8, "length": 64},
        }
    )  # fmt: skip


@pytest.mark.parametrize("allocation", ["fit", "evolution"])
@pytest.mark.parametrize("stages", [(SVD | {"modules": "all"},), (PRUNE,), (PRUNE, SVD)])
def test_ranks_and_neurons_are_chosen_within_the_bytes(source, tmp_path, allocation, stages):
    model = SourceModel(folder=source, name="tiny")
    report = compress(
        model, structural(*stages, allocation=allocation), tmp_path / "out", text=builtin_text()
    )
    assert 0.5 * report.source_bytes / 2 < report.artifact_bytes
    assert report.artifact_bytes <= 0.75 * report.source_bytes / 2 * 1.02  # float32 counts half
    for stage in stages:
        applied = [one for one in report.modules if one.stage == stage["type"] and one.applied]
        assert applied
    chosen = {
        one.figures.get("kept", one.figures.get("rank")) for one in report.modules if one.applied
    }
    assert len(chosen) > 1


@pytest.mark.parametrize("stage", [SVD | {"modules": "all"}, PRUNE])
def test_losses_of_levels_are_what_outputs_lose(source, stage):
    """Against weights that really have the level, on the moments they were measured with."""
    skeleton, checkpoint = load_skeleton(source), open_checkpoint(source)
    rows = torch.randint(3, VOCABULARY, (64, 240), generator=torch.Generator().manual_seed(5))
    recipe = structural(stage, allocation="fit")
    survey = Survey(skeleton, recipe, 2)
    checked = []

    def visit(index, layer, found):
        survey.visit(index, layer, found)
        family = skeleton.family
        for name in (family.mlp_out,) if stage is PRUNE else family.attention:
            statistics = found.matrices[name]
            weight, counts = layer.get_submodule(name).weight.detach(), statistics.output_weights
            parsed = recipe.stages[0]
            levels = (
                pruned_at(weight, counts, statistics.inputs, parsed)
                if stage is PRUNE
                else truncated_at(weight, counts, statistics.inputs)
            )
            options = survey.options[f"{skeleton.layer_path(index)}.{name}"]
            second_moment = statistics.inputs.second_moment.double()
            for at, (level, changed) in enumerate(levels):
                assert level == options.levels[at]
                change = (weight - changed).double()
                lost = 0.5 * float(counts.double() @ ((change @ second_moment) * change).sum(1))
                moved = 0.5 * float(counts.double() @ (change.square() @ second_moment.diagonal()))
                checked.append((lost, options.losses[at], moved, options.distances[at]))
            assert list(options.bytes) == sorted(options.bytes)
            assert list(options.losses) == sorted(options.losses, reverse=True)
            assert options.losses[-1] == options.distances[-1] == 0.0

    with tempfile.TemporaryDirectory() as scratch:
        measure_sensitivity(skeleton, checkpoint, rows, Path(scratch), Silent(), visit)
    # Few tokens count as less; and losses of neurons are those of each alone, who lose more together.
    ratios = sorted(lost / said for lost, said, _, _ in checked if said)
    assert ratios[-1] <= (3.0 if stage is PRUNE else 1.1)
    assert ratios[len(ratios) // 2] >= 0.6
    if stage is not PRUNE:
        assert all(
            said == pytest.approx(moved, rel=1e-3, abs=1e-9) for _, _, moved, said in checked
        )


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        ([{"type": "quantize", "method": "entropy"}], "does not share out bits by entropy"),
        ([PRUNE, SVD | {"modules": "all"}], "not both"),
        ([{"type": "prune-heads", "ratio": "auto"}], "leave out prune-heads set to auto"),
    ],
)
def test_what_has_no_levels_is_refused(stages, words):
    with pytest.raises(RecipeError, match=words):
        parse_recipe({"stages": stages, "target": {"bytes_ratio": 0.5, "allocation": "fit"}})
