"""Weights that stay coded in memory: the same results, less memory, and limits that hold."""

import copy
import pickle
import threading

import pytest
import torch
from transformers import AutoModelForCausalLM

from spq_core.artifact.read import load_artifact
from spq_core.artifact.residency import coded_layers, expand, load_within, measured_speeds
from spq_core.compression.compress import SourceModel, compress
from spq_core.data.texts import builtin_text
from spq_core.errors import ArtifactError
from spq_core.evaluation.loading import resident_bytes
from spq_core.formats.residency import Held, Speeds, fraction_within_bytes, kept_coded, spread_over
from spq_core.recipe.document import parse_recipe
from tests.models import save_tiny, some_ids

WINDOWS = {"dataset": "builtin", "form": "windows", "samples": 8, "length": 64}


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    folder = tmp_path_factory.mktemp("artifact")
    source = save_tiny(folder / "source")
    document = {
        "stages": [{"type": "quantize", "method": "entropy"}],
        "target": {"bytes_ratio": 0.4}, "calibration": WINDOWS,
    }  # fmt: skip
    model = SourceModel(folder=source, name="tiny")
    compress(model, parse_recipe(document), folder / "out", text=builtin_text())
    return folder / "out"


def logits(model, count=40):
    with torch.no_grad():
        return model(some_ids(count)).logits


@pytest.mark.parametrize("fraction", [0.25, 1.0])
def test_what_stays_coded_computes_the_same(artifact, fraction):
    plain, coded = load_artifact(artifact), load_artifact(artifact, coded=fraction)
    assert coded_layers(coded)
    for count in (1, 40):
        for _ in range(3):  # the second pass is decoded ahead
            assert torch.equal(logits(coded, count), logits(plain, count))
    ids = some_ids(8)
    answers = [one.generate(ids, max_new_tokens=12, do_sample=False) for one in (plain, coded)]
    assert torch.equal(*answers)


def test_all_of_it_coded_takes_its_stored_bytes(artifact):
    plain, coded = load_artifact(artifact), load_artifact(artifact, coded=1.0)
    layers = coded_layers(coded).values()
    saved = sum(one.in_features * one.out_features - one.coded_bytes for one in layers)
    assert saved > 0
    assert resident_bytes(plain) - resident_bytes(coded) == pytest.approx(saved, rel=0.01)


def test_many_threads_may_use_one_model(artifact):
    plain, coded = load_artifact(artifact), load_artifact(artifact, coded=1.0)
    wanted = {count: logits(plain, count) for count in (1, 5, 40)}
    wrong = []

    def use(count):
        wrong.extend(
            count for _ in range(5) if not torch.equal(logits(coded, count), wanted[count])
        )

    threads = [threading.Thread(target=use, args=(count,)) for count in (1, 5, 40, 1)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert not wrong


def test_layers_left_out_of_a_pass_do_no_harm(artifact):
    """The order is learned, and may be another the next time."""
    plain, coded = load_artifact(artifact), load_artifact(artifact, coded=1.0)
    x = torch.randn(3, 96, generator=torch.Generator().manual_seed(1))
    logits(coded)
    for index in (2, 0, 1, 0):
        names = [f"model.layers.{index}.mlp.{part}" for part in ("up_proj", "gate_proj")]
        for name in names:
            with torch.no_grad():
                assert torch.equal(coded.get_submodule(name)(x), plain.get_submodule(name)(x))
    assert torch.equal(logits(coded), logits(plain))


def test_a_copy_computes_by_itself(artifact):
    coded = load_artifact(artifact, coded=1.0)
    wanted, twin = logits(coded), copy.deepcopy(coded)
    assert torch.equal(logits(twin), wanted)
    decoders = {id(one.decoder) for model in (coded, twin) for one in coded_layers(model).values()}
    assert len(decoders) == 2


def test_a_used_model_can_be_pickled_and_compiled(artifact):
    coded = load_artifact(artifact, coded=1.0)
    wanted = logits(coded)
    layer = coded.model.layers[0].mlp.up_proj
    x = torch.randn(30, 96, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        plain = layer(x)
        assert torch.equal(torch.compile(layer, backend="eager")(x), plain)
    twin = pickle.loads(pickle.dumps(layer))
    with torch.no_grad():
        assert torch.equal(twin(x), plain)
    assert torch.equal(logits(coded), wanted)


def test_a_coded_model_is_saved_as_it_was_read(artifact, tmp_path):
    load_artifact(artifact, coded=0.5).save_pretrained(tmp_path / "again")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again")
    assert torch.equal(logits(again), logits(load_artifact(artifact)))


def test_a_limit_in_bytes_is_kept(artifact):
    all_coded = load_artifact(artifact, coded=1.0)
    plain = load_artifact(artifact)
    room = 3 * 96 * 160  # what may be decoded for the moment
    least, most = resident_bytes(all_coded) + room, resident_bytes(plain)
    wanted = (least + most) // 2
    model = load_within(artifact, resident_bytes=wanted)
    assert resident_bytes(model) + room <= wanted
    assert coded_layers(model)
    assert torch.equal(logits(model), logits(plain))
    assert not coded_layers(load_within(artifact, resident_bytes=10 * most))
    with pytest.raises(ValueError, match="too few: all coded it takes"):
        load_within(artifact, resident_bytes=least // 2)


def test_a_limit_on_time_keeps_the_share_that_was_measured(artifact):
    model = load_artifact(artifact, coded=1.0)
    speeds = measured_speeds(model, 1)
    assert speeds.compute_seconds > 0
    assert speeds.decode_seconds > 0
    expand(model, speeds.fraction_within(1.0))
    assert not coded_layers(model)
    assert coded_layers(load_within(artifact, max_slowdown=1000.0))


def test_what_is_not_stored_by_entropy_cannot_stay_coded(tmp_path):
    source = save_tiny(tmp_path / "source")
    recipe = parse_recipe({"stages": [{"type": "quantize"}]})
    compress(SourceModel(folder=source, name="tiny"), recipe, tmp_path / "int8")
    with pytest.raises(ArtifactError, match="int8 has nothing to keep coded"):
        load_within(tmp_path / "int8", max_slowdown=2.0)
    assert load_artifact(tmp_path / "int8", coded=1.0) is not None


@pytest.mark.parametrize("limits", [{}, {"resident_bytes": 1, "max_slowdown": 2.0}])
def test_one_limit_is_given(artifact, limits):
    with pytest.raises(ValueError, match="either"):
        load_within(artifact, **limits)


def test_a_share_is_spread_over_the_order():
    sizes = {f"m{number}": 10 + number % 3 for number in range(60)}
    for fraction in (0.0, 0.25, 0.5, 0.75, 1.0):
        chosen = spread_over(sizes, fraction)
        share = sum(sizes[name] for name in chosen) / sum(sizes.values())
        assert fraction <= share + 1e-9 <= fraction + 0.03
    half = [name in spread_over(sizes, 0.5) for name in sizes]
    assert max(len(run) for run in "".join("x" if one else " " for one in half).split()) <= 2


def test_what_limits_come_to():
    speeds = Speeds(compute_seconds=2.0, decode_seconds=4.0)
    assert speeds.seconds(0.5) == 4.0
    assert speeds.fraction_within(1.5) == pytest.approx(0.25)
    assert speeds.fraction_within(9.0) == 1.0
    held = {f"m{number}": Held(50, 100) for number in range(10)}
    assert fraction_within_bytes(2000, held, 1000, room_bytes=100) == 0.0
    assert fraction_within_bytes(1990, held, 1000, room_bytes=100) == pytest.approx(0.3)
    assert fraction_within_bytes(1600, held, 1000) == pytest.approx(0.8)
    assert fraction_within_bytes(9000, held, 1000) == 0.0
    with pytest.raises(ValueError, match="at least 1"):
        speeds.fraction_within(0.5)
    with pytest.raises(ValueError, match="between 0 and 1"), kept_coded(1.5):
        pass
