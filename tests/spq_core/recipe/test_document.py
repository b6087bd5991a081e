import jsonschema
import pytest
from click.testing import CliRunner

from spq_core.cli.documents import recipes_command
from spq_core.data.calibration import PASSED_SECONDS, Layers
from spq_core.errors import RecipeError
from spq_core.recipe.catalog import catalog, read_request, resolve
from spq_core.recipe.document import Recipe, parse_recipe

PAPER = catalog()["spq-paper"]


def test_catalog_fits_the_published_schema():
    schema = Recipe.model_json_schema(by_alias=True)
    for recipe in catalog().values():
        jsonschema.validate(recipe.document(), schema)
        assert parse_recipe(recipe.document()).sha256() == recipe.sha256()


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({"stages": [{"type": "svd", "varience": 0.9}]}, ["varience", "unknown key"]),
        ({"stages": [{"type": "svd", "variance": 1.5}]}, ["variance", "1.5"]),
        ({"stages": [{"type": "squeeze"}]}, ["squeeze"]),
        ({"stages": []}, ["stages"]),
        ({"stages": [{"type": "svd"}, {"type": "svd"}]}, ["repeated: svd"]),
        ({"stages": [{"type": "prune", "min_ratio": 0.5, "max_ratio": 0.1}]}, ["min_ratio 0.5"]),
        ({"stages": [{"type": "quantize", "bits": 5}]}, ["bits", "5"]),
        ({"stage": []}, ["stage: unknown key (did you mean stages?)"]),
        ({"stages": []}, ["stages: give at least one stage"]),
        ({"stages": [{"type": "quantze"}]}, ["unknown stage 'quantze'", "did you mean quantize?"]),
        ([], ["recipe"]),
    ],
)
def test_bad_documents_name_the_key_and_the_value(document, words):
    with pytest.raises(RecipeError) as caught:
        parse_recipe(document)
    assert all(word in str(caught.value) for word in words)


def test_unknown_name_lists_the_catalog():
    with pytest.raises(RecipeError, match="unknown recipe 'nope'.*int8.*spq-paper"):
        resolve("nope")


def test_extending_changes_only_what_is_named():
    changed = resolve({"extends": "spq-paper", "calibration": {"samples": 3}})
    assert changed.stages == PAPER.stages
    assert changed.calibration.samples == 3
    assert changed.calibration.length == PAPER.calibration.length
    assert changed.metadata.name == "spq-paper-custom"
    assert changed.sha256() != PAPER.sha256()


def test_the_paper_does_not_calibrate_on_evaluation_text_unless_told():
    assert not PAPER.calibration.allow_evaluation_text


@pytest.mark.parametrize("name", ["balanced", "small", "gptq-4", "spq"])
def test_calibration_grows_with_the_widest_input(name):
    """8,192 tokens say nothing about 14,336 inputs."""
    calibration = resolve(name).calibration
    small, large = (
        calibration.count(Layers(widest, 10**9)) * calibration.length for widest in (1536, 14_336)
    )
    assert small == calibration.least_tokens
    assert large == pytest.approx(5 * 14_336, rel=0.01)
    assert (
        resolve({"extends": name, "calibration": {"samples": 7}}).calibration.count(
            Layers(14_336, 10**9)
        )
        == 7
    )


def test_windows_shorter_than_asked_for_are_as_many_more():
    calibration = resolve("balanced").calibration
    layers = Layers(1536, 10**8)
    assert calibration.count(layers, length=256) == 2 * calibration.count(layers)


def test_samples_are_no_more_than_there_is_time_for():
    """70,000 tokens of an 8B model are hours."""
    layers = Layers(14_336, 7 * 10**9)
    calibration = resolve({"extends": "balanced", "calibration": {"most_minutes": 60}}).calibration
    count = calibration.count(layers)
    assert count < resolve("balanced").calibration.count(layers)
    assert count * calibration.length * layers.weights * PASSED_SECONDS == pytest.approx(
        3600, rel=0.06
    )
    small = Layers(1536, 10**8)
    assert calibration.count(small) == resolve("balanced").calibration.count(small)
    assert calibration.count(Layers(14_336, 10**12)) == 1


def test_a_recipe_in_the_words_of_earlier_versions_is_the_same_recipe():
    earlier = {
        "stages": [
            {"type": "svd", "objective": "loss", "variance": "auto", "least_share": 0.45},
            {"type": "quantize", "method": "rate", "strongest_first": False, "leave_whole": False},
        ],
        "target": {"bytes_ratio": 0.5},
    }
    now = {
        "stages": [
            {"type": "svd", "objective": "loss", "variance": "auto", "min_factorized_share": 0.45},
            {
                "type": "quantize", "method": "entropy", "act_order": False,
                "keep_dense_with_spare_bytes": False,
            },
        ],
        "target": {"bytes_ratio": 0.5},
    }  # fmt: skip
    assert parse_recipe(earlier).sha256() == parse_recipe(now).sha256()
    written = str(parse_recipe(earlier).document())
    assert not any(
        word in written for word in ("'least_share'", "'rate'", "strongest", "leave_whole")
    )


def test_a_file_that_is_no_document_is_named_with_the_place(tmp_path):
    file = tmp_path / "mine.json"
    file.write_text('{\n "stages": [,]\n}')
    with pytest.raises(RecipeError, match=r"mine\.json is not YAML or JSON, line 2, column 13: "):
        read_request(str(file))


def test_a_recipe_that_extends_another_does_not_say_what_is_no_longer_so():
    changed = resolve({"extends": "small", "target": {"bytes_ratio": 0.3}})
    assert changed.metadata.description == "As `small`, with other target."
    named = {"extends": "small", "metadata": {"name": "mine"}}
    assert resolve(named).metadata.name == "mine"


def test_a_file_is_checked_by_the_command_that_shows_recipes(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("extends: small\ntarget: {bytes_ratio: 0.3}\n")
    shown = CliRunner().invoke(recipes_command, [str(file)], catch_exceptions=False)
    assert "bytes_ratio: 0.3" in shown.output
    file.write_text("extends: small\ntarget: {bytes_rato: 0.3}\n")
    with pytest.raises(RecipeError, match="did you mean bytes_ratio"):
        CliRunner().invoke(recipes_command, [str(file)], catch_exceptions=False)
