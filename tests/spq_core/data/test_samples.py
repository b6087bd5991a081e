"""Calibration samples of several texts."""

import pytest
import torch

from spq_core.data.calibration import Calibration, Layers
from spq_core.data.samples import calibration_samples, shuffled
from spq_core.data.texts import (
    Text,
    builtin_code,
    builtin_text,
    find_text,
    mixture,
    refuse_shared_lines,
    texts_for,
)
from spq_core.errors import CalibrationLeakError, DatasetError
from spq_core.models.tokenizer import load_tokenizer
from tests.models import save_tiny

LENGTH = 16
LAYERS = Layers(96, 100_000)
MIX = {"form": "windows", "samples": 24, "length": LENGTH, "dataset": "a"}


def text(name, letter, lines=200):
    """A text of one letter, so that windows show where they are from."""
    return Text(
        name=name, calibration=f"{letter * 47}\n" * lines, evaluation="z" * 200, origin=name
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("model"))


def letters(samples, model):
    words = load_tokenizer(model).batch_decode(samples.rows, skip_special_tokens=True)
    return [word.strip()[0] for word in words]


def sampled(settings, main, model):
    return calibration_samples(Calibration.model_validate(MIX | settings), main, model, LAYERS)


def test_half_is_of_the_main_text_and_the_rest_in_equal_parts(model):
    settings = {"mixed_with": ["b", "c"]}
    texts = {name: text(name, name) for name in "abc"}
    main = mixture(Calibration.model_validate(MIX | settings), texts)
    samples = sampled(settings, main, model)
    found = letters(samples, model)
    assert {letter: found.count(letter) for letter in "abc"} == {"a": 12, "b": 6, "c": 6}
    assert {one["dataset"]: one["samples"] for one in samples.description["mixed"]} == {
        "b": 6,
        "c": 6,
    }
    assert samples.description["samples"] == 24
    assert samples.description["left_out"] == []


def test_the_share_of_the_others_is_as_set(model):
    settings = {"mixed_with": ["b", "c"], "mixed_share": 0.25}
    main = mixture(Calibration.model_validate(MIX | settings), {n: text(n, n) for n in "abc"})
    found = letters(sampled(settings, main, model), model)
    assert {letter: found.count(letter) for letter in "abc"} == {"a": 18, "b": 3, "c": 3}


def test_any_even_choice_of_rows_is_of_all_texts(model):
    settings = {"mixed_with": ["b", "c"]}
    main = mixture(Calibration.model_validate(MIX | settings), {n: text(n, n) for n in "abc"})
    found = letters(sampled(settings | {"samples": 64}, main, model), model)
    for step in (2, 3, 4):
        some = found[::step]
        assert set(some) == set("abc")
        assert len(some) / 4 < some.count("a") < 3 * len(some) / 4


def test_a_short_text_gives_what_it_has(model):
    settings = {
        "mixed_with": ["b"],
        "samples": "auto",
        "least_tokens": 24 * LENGTH,
        "tokens_per_input": 1,
    }
    texts = {"a": text("a", "a"), "b": text("b", "b", lines=1)}
    found = letters(
        sampled(settings, mixture(Calibration.model_validate(MIX | settings), texts), model), model
    )
    assert found.count("b") == 3
    assert found.count("a") == 21


def test_what_cannot_be_had_is_left_out_and_named(model):
    settings = Calibration.model_validate(MIX | {"mixed_with": ["b", "gone"]})

    def find(name):
        if name == "gone":
            raise DatasetError("not here")
        return text(name, name)

    main = mixture(settings, texts_for(settings, (), find))
    assert main is not None
    samples = calibration_samples(settings, main, model, LAYERS)
    assert samples.description["left_out"] == ["gone"]
    assert letters(samples, model).count("b") == 12


def test_what_stands_in_for_another_text_is_not_mixed_in_for_it():
    settings = Calibration.model_validate(MIX | {"mixed_with": ["b"]})
    main = mixture(settings, {"a": text("a", "a"), "b": text("builtin", "b")})
    assert main is not None
    assert main.mixed == ()
    assert main.left_out == ("b",)


def test_evaluation_text_is_not_mixed_in(model):
    leaked = Text(name="b", calibration="z" * 200 + "\n", evaluation="", origin="b")
    settings = Calibration.model_validate(MIX | {"mixed_with": ["b"]})
    main = mixture(settings, {"a": text("a", "a"), "b": leaked})
    with pytest.raises(CalibrationLeakError):
        calibration_samples(settings, main, model, LAYERS)


def test_a_text_whose_own_parts_overlap_is_not_mixed_in(model):
    leaked = Text(name="b", calibration="b" * 60 + "\n", evaluation="b" * 60, origin="b")
    settings = Calibration.model_validate(MIX | {"mixed_with": ["b"]})
    main = mixture(settings, {"a": text("a", "a"), "b": leaked})
    with pytest.raises(CalibrationLeakError):
        calibration_samples(settings, main, model, LAYERS)


def test_a_text_too_short_for_a_window_is_left_out_and_named(model):
    settings = Calibration.model_validate(MIX | {"mixed_with": ["b"]})
    short = Text(name="b", calibration="b\n", evaluation="z", origin="b")
    samples = calibration_samples(
        settings, mixture(settings, {"a": text("a", "a"), "b": short}), model, LAYERS
    )
    assert set(letters(samples, model)) == {"a"}
    assert samples.description["left_out"] == ["b"]


def test_a_needed_text_that_is_not_there_is_an_error(tmp_path):
    settings = Calibration.model_validate(MIX | {"mixed_with": ["builtin"]})
    with pytest.raises(DatasetError, match="'a'"):
        texts_for(settings, (), lambda name: find_text(name, tmp_path))


def test_without_others_samples_are_as_ever(model):
    rows = torch.arange(12).view(6, 2)
    assert torch.equal(shuffled([rows]), rows)
    plain = sampled({}, text("a", "a"), model)
    assert "mixed" not in plain.description


def test_the_built_in_code_has_parts_that_share_no_distinctive_line():
    code = builtin_code()
    assert "def " in code.calibration
    assert "import" in code.evaluation
    refuse_shared_lines(code.calibration.splitlines(), code.evaluation)
    assert code.fingerprint != builtin_text().fingerprint
