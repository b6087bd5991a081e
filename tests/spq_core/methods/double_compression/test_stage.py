"""Folding changes nothing, and artifacts compute what their codes say, coded in memory or not."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from spq_core.artifact.read import load_artifact
from spq_core.compression.compress import SourceModel, compress
from spq_core.data.texts import builtin_text
from spq_core.errors import RecipeError
from spq_core.formats.slicing import linear_at
from spq_core.methods.double_compression.folding import alike_in_groups, fold
from spq_core.models.skeleton import load_skeleton
from spq_core.recipe.document import parse_recipe
from tests.models import FAMILIES, save_tiny, some_ids

FOLDS = {"llama": 4, "llama-untied": 4, "qwen2": 4, "phi3": 3, "opt": 3, "gpt-neox": 2, "gemma2": 2}
"""Of four inputs, how many can be divided: gemma's norms add one, GPT-NeoX's activation is not linear."""


def recipe(**changed):
    return parse_recipe(
        {
            "stages": [{"type": "double-compression", "alpha": 0.9, "scales": "row"} | changed],
            "calibration": {"dataset": "builtin", "form": "windows", "samples": 4, "length": 64},
            "floats": "source",
        }
    )  # fmt: skip


def made(folder, out, **changed):
    source = SourceModel(folder=folder, name="tiny")
    return compress(source, recipe(**changed), out, text=builtin_text())


@pytest.mark.parametrize("family", FOLDS)
def test_what_is_folded_changes_nothing(tmp_path, family):
    folder = save_tiny(tmp_path / "tiny", family)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    known = load_skeleton(folder).family
    if known.input_major:
        pytest.skip("its matrices are turned by the walk")
    ids = some_ids()
    with torch.no_grad():
        before = model(ids).logits
        layers = [module for name, module in model.named_modules() if name.endswith("layers.1")]
        layer, folded = layers[0], 0
        calls = []
        handle = layer.register_forward_pre_hook(
            lambda _m, args, named: calls.append((args, named)), with_kwargs=True
        )
        model(ids)
        handle.remove()
        arguments, named = calls[0]
        named = {**named, "past_key_values": None, "use_cache": False}
        for group in known.shared_inputs:
            linears = [linear_at(layer, name) for name in group]
            generator = torch.Generator().manual_seed(len(group))
            octaves = torch.randint(0, 6, (linears[0].in_features,), generator=generator)
            scales = alike_in_groups(octaves.float().exp2(), layer, known, group[0])
            weights = [linear.weight.clone() for linear in linears]
            done = fold(layer, known, group[0], linears, scales, lambda: layer(*arguments, **named))
            for linear, weight in zip(linears, weights, strict=True):
                assert torch.equal(linear.weight, weight * scales if done else weight)
            folded += done
        after = model(ids).logits
    assert folded == FOLDS[family]
    assert (after - before).abs().max() <= 1e-4 * before.abs().max()


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_an_artifact_is_close_to_its_source(tmp_path, family):
    folder = save_tiny(tmp_path / "tiny", family)
    report = made(folder, tmp_path / "out")
    with torch.no_grad():
        wanted = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(
            some_ids()
        ).logits
        got = load_artifact(tmp_path / "out")(some_ids()).logits
    assert (got - wanted).norm() <= 0.05 * wanted.norm()
    assert all(module.applied for module in report.modules)


def test_what_cannot_be_folded_is_carried_in_the_steps(tmp_path):
    folder = save_tiny(tmp_path / "tiny", "gemma2")
    report = made(folder, tmp_path / "out")
    folded = {one.layer: one.figures["folded"] for one in report.modules if "folded" in one.figures}
    assert folded["model.layers.0.self_attn.q_proj"] == 0.0
    assert folded["model.layers.0.mlp.down_proj"] == 1.0
    layers = dict(load_artifact(tmp_path / "out").named_modules())
    steps = layers["model.layers.0.self_attn.q_proj"].input_scale
    assert steps.max() > steps.min()


def test_behind_low_rank_pairs_too(tmp_path):
    folder = save_tiny(tmp_path / "tiny")
    plain = recipe().document()
    plain["stages"].insert(0, {"type": "svd", "variance": 0.9})
    source = SourceModel(folder=folder, name="tiny")
    both = parse_recipe(plain)
    report = compress(source, both, tmp_path / "both", text=builtin_text())
    plain["stages"].pop()
    alone = parse_recipe(plain)
    compress(source, alone, tmp_path / "alone", text=builtin_text())
    assert any(
        one.layer.endswith(".up") and one.stage == "double-compression" for one in report.modules
    )
    with torch.no_grad():
        wanted, got = (
            load_artifact(tmp_path / name)(some_ids()).logits for name in ("alone", "both")
        )
    assert (got - wanted).norm() <= 0.05 * wanted.norm()


def test_it_stays_coded_in_memory_with_the_same_bits(tmp_path):
    folder = save_tiny(tmp_path / "tiny")
    made(folder, tmp_path / "out", pruned=0.3, alpha="auto")
    with torch.no_grad():
        whole, coded = (
            load_artifact(tmp_path / "out", coded=share)(some_ids()).logits for share in (0.0, 1.0)
        )
    assert torch.equal(whole, coded)


def test_fewer_bytes_with_one_scale_and_with_pruning(tmp_path):
    folder = save_tiny(tmp_path / "tiny")
    rows, matrix, pruned = (
        made(folder, tmp_path / str(at), **changed)
        for at, changed in enumerate(
            ({}, {"scales": "matrix"}, {"scales": "matrix", "pruned": 0.6})
        )
    )
    bits = [
        sum(one.figures["bits"] for one in report.modules if one.layer.endswith("gate_proj"))
        for report in (rows, matrix, pruned)
    ]
    assert bits[0] > bits[1] > bits[2]
    zeros = [one.figures["zeros"] for one in pruned.modules if one.layer.endswith("gate_proj")]
    assert min(zeros) >= 0.6 - 1e-3


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        ([{"type": "double-compression"}, {"type": "quantize"}], "leave out the other stage"),
        ([{"type": "double-compression"}, {"type": "prune"}], "must be the last stage"),
    ],
)
def test_orders_that_are_none_are_refused(stages, words):
    with pytest.raises(RecipeError, match=words):
        parse_recipe({"stages": stages, "calibration": {"form": "windows"}})


def test_a_profile_of_other_readers_is_refused():
    with pytest.raises(RecipeError, match="codes stored by entropy have no form"):
        parse_recipe({"stages": [{"type": "double-compression"}], "profile": "portable"})
