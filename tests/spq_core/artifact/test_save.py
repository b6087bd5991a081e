"""What users do with a loaded artifact besides running it: cast it, save it, load it again."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from spq_core.compression.compress import SourceModel, compress
from spq_core.data.texts import builtin_text
from spq_core.models.weight_files import stored_bytes
from spq_core.recipe.document import parse_recipe
from tests.models import save_tiny, some_ids
from tests.spq_core.workflow.test_load_gate import RECIPES


def load(folder, dtype="auto"):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)


@pytest.fixture(params=[("llama", name) for name in RECIPES] + [("llama-untied", "rate")])
def artifact(tmp_path, request):
    family, recipe = request.param
    source = save_tiny(tmp_path / "source", family, torch.bfloat16, hidden=192, vocabulary=512)
    compress(
        SourceModel(folder=source, name="tiny"), parse_recipe(RECIPES[recipe]), tmp_path / "out",
        text=builtin_text(),
    )  # fmt: skip
    return tmp_path / "out"


def test_save_load_save_gives_the_same_files(artifact, tmp_path):
    first = load(artifact)
    first.save_pretrained(tmp_path / "one")
    second = load(tmp_path / "one")
    second.save_pretrained(tmp_path / "two")
    files = {path.name for path in (tmp_path / "one").iterdir()}
    assert {"config.json", "model.safetensors"} <= files
    for name in files:
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
    with torch.no_grad():
        assert torch.equal(second(some_ids()).logits, first(some_ids()).logits)
    # as small as it was: a few shards' headers are the difference
    assert stored_bytes(tmp_path / "one") <= stored_bytes(artifact)


def test_tying_again_changes_nothing(artifact, tmp_path):
    """Other tools call `tie_weights` on what they are given."""
    model = load(artifact)
    with torch.no_grad():
        before = model(some_ids()).logits
        model.tie_weights()
        assert torch.equal(model(some_ids()).logits, before)
    model.save_pretrained(tmp_path / "again")
    assert stored_bytes(tmp_path / "again") <= stored_bytes(artifact)


def test_the_dtype_is_the_one_it_computes_in(artifact, tmp_path):
    model = load(artifact)
    assert model.dtype == torch.bfloat16
    model.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text())["dtype"] == "bfloat16"
    assert load(tmp_path / "again").dtype == torch.bfloat16
    assert model.to(torch.float16).dtype == torch.float16
    assert load(artifact, torch.float32).dtype == torch.float32
