"""What holds of every registered method; a new one is tried here without being named."""

from importlib import import_module
from pathlib import Path

import pytest

from spq_core.compression.compress import compress
from spq_core.data.texts import builtin_text
from spq_core.estimate.estimate import estimate, folder_shapes
from spq_core.methods.registry import METHODS
from spq_core.methods.settings import StageSettings, Toy
from spq_core.models.clean_copy import SourceModel
from spq_core.recipe.document import parse_recipe
from tests.model_types.toys import save_toy
from tests.models import save_tiny

NAMES = {method.name: method for method in METHODS}
README = (Path(__file__).parents[3] / "README.md").read_text(encoding="utf-8")
EXTENDING = (Path(__file__).parents[3] / "docs/extending.md").read_text(encoding="utf-8")
TOY = Toy(tokens=32, rank=16, group=32)


def test_names_are_its_own():
    assert len(NAMES) == len(METHODS)


@pytest.mark.parametrize("name", NAMES)
def test_a_method_makes_its_stage_and_says_what_it_does(name):
    method = NAMES[name]
    assert callable(import_module(method.module).make_stage)
    assert method.settings.__doc__ != StageSettings.__doc__
    assert f"`{name}`" in README
    assert f"| `{name}` |" in EXTENDING


@pytest.mark.parametrize("name", NAMES)
def test_defaults_are_a_recipe_that_can_be_estimated_and_tried(tmp_path, name):
    recipe = parse_recipe({"stages": [{"type": name}], "calibration": {"form": "windows"}})
    (stage,) = recipe.stages
    assert type(stage) is NAMES[name].settings
    small = stage.for_preflight(TOY, fixed=True)
    assert type(small).model_validate(small.model_dump()) == small
    shapes = folder_shapes(save_tiny(tmp_path / "tiny"))
    assert estimate(recipe, shapes).artifact_bytes.expected > 0
    assert parse_recipe(recipe.document()) == recipe


@pytest.mark.parametrize("name", NAMES)
def test_its_stage_runs_and_reports_on_matrices(tmp_path, name):
    text = builtin_text()
    calibration = {"dataset": text.name, "form": "windows", "samples": 2, "length": 32}
    recipe = parse_recipe({"stages": [{"type": name}], "calibration": calibration})
    small = recipe.stages[0].for_preflight(TOY, fixed=True)
    recipe = recipe.model_copy(update={"stages": (small,)})
    mixture = name == "prune-experts"
    folder = save_toy("mixtral", tmp_path / "tiny") if mixture else save_tiny(tmp_path / "tiny")
    source = SourceModel(folder=folder, name="tiny")
    report = compress(source, recipe, tmp_path / "out", text=text)
    assert {module.stage for module in report.modules} == {name}
    assert len({module.layer for module in report.modules}) > 1
    assert all(module.applied or module.reason for module in report.modules)


@pytest.mark.parametrize("name", NAMES)
def test_earlier_names_of_keys_are_read_and_present_ones_are_written(name):
    settings = NAMES[name].settings
    for before, now in settings.earlier_names.items():
        assert before not in settings.model_fields
        default = settings.model_fields[now].default
        assert settings.model_validate({"type": name, before: default}) == settings(type=name)
        assert before not in settings.model_validate({"type": name, before: default}).model_dump()
        with pytest.raises(ValueError, match=f"{before} is the earlier name of {now}"):
            settings.model_validate({"type": name, before: default, now: default})
