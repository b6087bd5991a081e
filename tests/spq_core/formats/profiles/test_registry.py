"""What holds of every registered profile; a new one is tried here without being named."""

import ast
import json
from pathlib import Path

import pytest
import torch

from spq_core.artifact.load_check import compare
from spq_core.artifact.manifest import read_manifest, verify_files
from spq_core.artifact.read import load_model
from spq_core.compression.compress import compress
from spq_core.data.texts import builtin_text
from spq_core.errors import RecipeError
from spq_core.estimate.estimate import estimate, folder_shapes
from spq_core.formats.layouts import LAYOUTS
from spq_core.formats.profiles.registry import PROFILES
from spq_core.methods.registry import METHODS
from spq_core.models.clean_copy import SourceModel
from spq_core.models.weight_files import stored_bytes
from spq_core.recipe.document import parse_recipe
from spq_core.workflow.blocked_load_check import compare as compare_blocked
from tests.models import save_tiny

ROOT = Path(__file__).parents[4]
NAMES = {profile.name: profile for profile in PROFILES}
KINDS = {layout.model_fields["kind"].default for layout in LAYOUTS}
CALIBRATION = {"dataset": "builtin", "form": "windows", "samples": 2, "length": 32}
QUANTIZE = {"type": "quantize", "bits": 8, "embedding": False}
BLOCKS = {"type": "quantize", "types": ["Q8_0"]}


@pytest.mark.parametrize("name", NAMES)
def test_it_holds_forms_that_there_are_and_says_how_it_is_loaded(name):
    profile = NAMES[name]
    assert profile.forms <= KINDS
    assert ("llama-server" if profile.single_file else "from_pretrained") in profile.loading
    assert f"`{name}`" in (ROOT / "docs/extending.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("stages", [[], [QUANTIZE], [BLOCKS]], ids=["floats", "codes", "blocks"])
def test_what_it_writes_loads_as_it_was_in_memory_and_takes_the_estimated_bytes(
    tmp_path, name, stages
):
    prune = {"type": "prune", "layer_ratios": "uniform", "max_ratio": 0.3}
    document = {"stages": [prune, *stages], "calibration": CALIBRATION, "profile": name}
    try:
        recipe = parse_recipe(document)
    except RecipeError as refusal:
        assert f"profile {name}: " in str(refusal)  # noqa: PT017 - or it is held
        pytest.skip(f"{name} holds no such codes")
    source = save_tiny(tmp_path / "source", "llama", torch.bfloat16)
    compress(
        SourceModel(folder=source, name="tiny"), recipe, tmp_path / "out",
        text=builtin_text(), probe_file=tmp_path / "probe",
    )  # fmt: skip
    verify_files(tmp_path / "out", read_manifest(tmp_path / "out"))
    assert read_manifest(tmp_path / "out").profile == name
    loaded = compare_blocked if NAMES[name].single_file else compare
    with torch.no_grad():
        assert loaded(tmp_path / "out", tmp_path / "probe")["logits"] < 0.02
    model = load_model(tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    widths = {layer.mlp.down_proj.in_features for layer in model.model.layers}
    assert len(widths) == 1 or not NAMES[name].equal_layers
    assert all(width % NAMES[name].width_multiple == 0 for width in widths)
    assert config["architectures"]
    written = stored_bytes(tmp_path / "out")
    expected = estimate(recipe, folder_shapes(source)).artifact_bytes
    assert expected.low * 0.8 < written < expected.high * 1.2


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("method", [method.name for method in METHODS])
def test_a_method_runs_under_it_or_is_refused_with_a_reason(name, method):
    document = {
        "stages": [{"type": method}], "calibration": CALIBRATION, "profile": name,
    }  # fmt: skip
    try:
        recipe = parse_recipe(document)
    except RecipeError as refusal:
        assert f"profile {name}: " in str(refusal)  # noqa: PT017 - or it is held  # noqa: PT017 - either is right
        assert NAMES[name].name != "compact"
    else:
        assert not recipe.stages[0].profile_error(NAMES[name])


def test_an_unknown_profile_is_refused_with_those_there_are():
    with pytest.raises(RecipeError, match="no profile 'protable'; there are: compact, portable"):
        parse_recipe({"stages": [QUANTIZE], "profile": "protable"})


LAYERS = {"Linear", "Embedding", "Conv1D"} | {
    name
    for path in (ROOT / "spq_core/formats").rglob("*.py")
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    if isinstance(node, ast.ClassDef)
    for name in [node.name]
    if name.endswith(("Linear", "Embedding", "Weight", "Layout", "Layer"))
}


def named(node):
    return {
        part.id if isinstance(part, ast.Name) else part.attr
        for part in ast.walk(node)
        if isinstance(part, ast.Name | ast.Attribute)
    }


def test_nobody_outside_the_formats_asks_for_a_layers_class_or_a_profiles_name():
    """The family of a source model is read from its layers (`models/`); all else asks the layer or the profile."""
    wrong = []
    for package in ("spq_core", "worker", "app"):
        for path in (ROOT / package).rglob("*.py"):
            inner = path.relative_to(ROOT).parts
            if inner[:2] in {("spq_core", "formats"), ("spq_core", "models")}:
                continue
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                asks = (
                    isinstance(node, ast.Call)
                    and getattr(node.func, "id", "") == "isinstance"
                    and named(node.args[1]) & LAYERS
                )
                compares = isinstance(node, ast.Compare) and any(
                    isinstance(part, ast.Constant) and part.value in NAMES
                    for part in [node.left, *node.comparators]
                )
                if asks or compares:
                    wrong.append(f"{'/'.join(inner)}:{node.lineno}")
    assert wrong == []
