"""Predictions of a model that is never whole in memory, against transformers' own forward pass."""

from itertools import product

import pytest
import torch

from spq_core.artifact.blocked import open_blocked
from spq_core.artifact.read import load_model
from spq_core.compression.compress import compress
from spq_core.data.texts import builtin_text
from spq_core.evaluation import predictor
from spq_core.evaluation.predictor import StreamedPredictor, WholePredictor
from spq_core.models.clean_copy import SourceModel
from spq_core.recipe.catalog import resolve
from tests.marks import every
from tests.models import FAMILIES, save_tiny, some_ids


def artifact(tmp_path, family, recipe):
    """A model folder, and what a recipe makes of it."""
    folder = save_tiny(tmp_path / "source", family, torch.bfloat16)
    if recipe is None:
        return folder
    source = SourceModel(folder=folder, name="tiny")
    compress(source, resolve(recipe), tmp_path / "out", text=builtin_text())
    return tmp_path / "out"


def predicted(asked, windows):
    positions = slice(0, windows.shape[1])
    return torch.stack([one.logits(positions) for one in asked.predict(windows)])


WINDOWS = torch.cat([some_ids(100), some_ids(100).flip(1), some_ids(100).roll(5, 1)])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_checkpoint_predicts_layer_by_layer_what_it_predicts_whole(tmp_path, family, monkeypatch):
    folder = artifact(tmp_path, family, None)
    monkeypatch.setattr(predictor, "GROUP_BYTES", 2 * 100 * 96 * 4)  # two windows at a time
    whole = load_model(folder).to(torch.float32)
    with torch.no_grad():
        wanted = whole(WINDOWS).logits
    found = predicted(StreamedPredictor(open_blocked(folder)), WINDOWS)
    torch.testing.assert_close(found, wanted, rtol=0, atol=2e-6)
    torch.testing.assert_close(predicted(WholePredictor(whole), WINDOWS), wanted, rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("family", "recipe"),
    every(
        4,
        list(
            product(
                ["llama", "gemma3", "gpt2"], ["int8", "balanced", "small", "spq-paper", "gptq-4"]
            )
        ),
    ),
)
def test_an_artifact_predicts_layer_by_layer_what_it_predicts_whole(tmp_path, family, recipe):
    folder = artifact(tmp_path, family, recipe)
    with torch.no_grad():
        wanted = load_model(folder).to(torch.float32)(WINDOWS).logits
    found = predicted(StreamedPredictor(open_blocked(folder)), WINDOWS)
    torch.testing.assert_close(found, wanted, rtol=0, atol=2e-6)


def test_forms_of_other_libraries_are_left_to_them(tmp_path):
    assert open_blocked(artifact(tmp_path, "llama", "portable-8")) is None


def test_a_whole_model_that_forgot_its_layers_still_has_its_head(tmp_path):
    model = load_model(artifact(tmp_path, "gemma2", None)).to(torch.float32)
    asked = WholePredictor(model)
    states = next(iter(asked.states(WINDOWS)))
    wanted = asked.logits(states)
    asked.forget_layers()
    assert torch.equal(asked.logits(states), wanted)
