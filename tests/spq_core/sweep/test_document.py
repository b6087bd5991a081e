"""What a sweep document comes to."""

import pytest

from spq_core.errors import RecipeError
from spq_core.recipe.catalog import resolve
from spq_core.sweep.document import named_sweep, parse_sweep
from spq_core.sweep.members import members


def expanded(document):
    return members(parse_sweep(document))


def test_a_grid_is_every_combination_and_what_moves_together():
    grid = {
        "base": "joint-25-4",
        "over": {"stages.0.sparsity": [0.0, 0.25]},
        "zip": {"stages.0.bits": [4, 8], "calibration.length": [128, 256]},
    }
    found = expanded({"grid": [grid]})
    seen = [
        (one.recipe.stages[0].bits, one.recipe.stages[0].sparsity, one.recipe.calibration.length)
        for one in found
    ]
    assert seen == [(4, 0.0, 128), (4, 0.25, 128), (8, 0.0, 256), (8, 0.25, 256)]
    assert found[0].fields == {
        "recipe": "joint-25-4", "stages.0.bits": 4, "calibration.length": 128, "stages.0.sparsity": 0.0,
    }  # fmt: skip
    assert [one.number for one in found] == [1, 2, 3, 4]


def test_recipes_that_come_to_the_same_are_one():
    same = resolve("small").target.bytes_ratio
    found = expanded(
        {
            "recipes": ["int8", "small", "int8"],
            "grid": [{"base": "small", "over": {"target.bytes_ratio": [same, 0.4]}}],
        }
    )
    assert [one.fields["recipe"] for one in found] == ["int8", "small", "small"]
    assert found[-1].recipe.target.bytes_ratio == 0.4


def test_a_target_may_be_given_to_a_recipe_that_has_none():
    document = resolve("small").document() | {"target": {"max_kl": 0.1}}
    (only,) = expanded({"grid": [{"base": document, "over": {"target.max_kl": [0.2]}}]})
    assert only.recipe.target.max_kl == 0.2


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({}, "give recipes, or a grid"),
        ({"recipes": ["no-such"]}, "no-such"),
        ({"recipes": ["int8"], "front": ["bytes_on_disk", "beauty"]}, "no figure is called 'beauty'"),
        ({"recipes": ["int8"], "objective": {"minimize": "kl", "maximize": "top1"}}, "either minimize or"),
        ({"recipes": ["int8"], "objective": {"minimize": "kl", "subject_to": {"x": {}}}}, "'x'"),
        ({"grid": [{"base": "small"}]}, "paths under over or zip"),
        ({"grid": [{"base": "small", "over": {"target.bites_ratio": [1]}}]}, "bites_ratio"),
        ({"grid": [{"base": "small", "over": {"stages.7.bits": [1]}}]}, "nothing at 'stages.7.bits'"),
        ({"grid": [{"base": "small", "over": {"stages.0": [1]}}]}, "whole stage"),
        ({"grid": [{"base": "small", "over": {"target.bytes_ratio": []}}]}, "at least 1"),
        ({"grid": [{"base": "gptq-4", "over": {"stages.0.bits": [5]}}]}, "stages.0.bits 5"),
        ({"grid": [{"base": "small", "zip": {"target.bytes_ratio": [0.3], "calibration.length": [1, 2]}}]}, "one length"),
        ({"grid": [{"base": "small", "over": {"target.bytes_ratio": [0.2 + at / 1000 for at in range(64)]}},
                   {"base": "int8", "over": {"calibration.length": [64]}}]}, "more than 64"),
        ("nonsense", "sweep: "),
        ({"grid": [{"base": "int8", "over": {f"metadata.x{at}": list(range(64)) for at in range(5)}}]}, "1,073,741,824 combinations"),
        ({"grid": [{"base": "int8", "over": {"profile.x": [1]}}]}, "nothing (at|below) 'profile"),
        ({"grid": [{"base": "small", "over": {"target": [{"bytes_ratio": 0.5}], "target.bytes_ratio": [0.3]}}]}, "holds another path"),
        ({"recipes": ["int8"], "front": ["kl", "kl"]}, "names a figure twice"),
        ({"recipes": ["int8"], "objective": {"minimize": "kl", "subject_to": {"kl": {"min": 1, "max": 0}}}}, "min is above max"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_its_place(document, words):
    with pytest.raises(RecipeError, match=words):
        expanded(document)


@pytest.mark.parametrize(
    "name", ["single-methods", "baselines", "frontier", "joint", "orders", "ranks", "double"]
)
def test_shipped_sweeps_have_members(name):
    sweep = named_sweep(name)
    assert sweep.name == name
    assert sweep.description
    assert 3 <= len(members(sweep)) <= 24


def test_a_sweep_that_is_not_there_is_told_what_is(tmp_path):
    with pytest.raises(RecipeError, match="there are baselines, double, frontier"):
        named_sweep("nowhere")
    with pytest.raises(RecipeError, match="does not exist"):
        named_sweep(str(tmp_path / "x.yaml"))
    (tmp_path / "x.yaml").write_text("a: [")
    with pytest.raises(RecipeError, match="is not YAML"):
        named_sweep(str(tmp_path / "x.yaml"))


def test_files_of_every_kind_are_read_or_refused(tmp_path):
    for content, words in (
        (b"name: sizes\nrecipes: [int8]\nday: 2026-01-01", "holds what JSON does not"),
        (b"name: .inf", "holds what JSON does not"),
        ("name: caf\u00e9".encode("latin-1"), "holds what JSON does not"),
    ):
        (tmp_path / "x.yaml").write_bytes(content)
        with pytest.raises(RecipeError, match=words):
            named_sweep(str(tmp_path / "x.yaml"))
