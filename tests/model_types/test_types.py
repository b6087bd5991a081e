"""Every supported type of model: compressed, loaded by a fresh process, and compared with what its layers say.

One type of each kind of layer runs always; `make models` (`coverage.py`) runs all, and writes what became of them.
"""

from itertools import product

import pytest
import torch
from safetensors.torch import load_file, save_file

from spq_core.models.family import FAMILIES
from spq_core.models.skeleton import load_skeleton
from spq_core.models.weight_files import weight_files
from tests import forked
from tests.marks import every
from tests.model_types.coverage import FARTHEST, PORTABLE, ROUTED, SAME
from tests.model_types.toys import (
    divergence,
    made,
    save_toy,
    source_predictions,
    twin_predictions,
    write_predictions,
)

DENSE = (
    "falcon", "minicpm3", "bloom", "arcee", "glm4", "starcoder2", "nanochat", "phi", "persimmon", "gptj", "codegen", "gpt_neo", "mpt",
    "xglm",
)  # fmt: skip
"""Kinds of layers, returned values, masks and scaled embeddings; the types of tests/models.py are tried everywhere."""
OTHERS = (
    "mixtral", "gpt_oss", "qwen3_5_text", "deepseek_v3", "gemma4_text", "jamba", "nemotron_h", "granitemoeshared", "lfm2",
)  # fmt: skip
"""Experts one by one in files, fused ones, state spaces, latent attention beside experts, embeddings for each layer, experts without a gate."""


def check(model_type, folder, recipes):
    """By each recipe."""
    source = save_toy(model_type, folder / "source")
    wanted = source_predictions(source)
    same = ROUTED if load_skeleton(source).family.experts else SAME
    for name in recipes:
        artifact, file = made(source, name, folder / name), folder / f"{name}.pt"
        assert forked.call(write_predictions, str(artifact), str(file)) == 0, (model_type, name)
        found = torch.load(file, weights_only=True)
        assert divergence(wanted, found) < FARTHEST[name], (model_type, name)
        twin = twin_predictions(source, artifact)
        assert abs(divergence(twin, found)) < same, (model_type, name)


@pytest.mark.parametrize(
    ("model_type", "recipe"),
    [
        ("falcon", "spq"), ("bloom", "int8"), ("minicpm3", "spq"), ("mixtral", "balanced"), ("gpt_oss", "spq"),
        ("qwen3_5_text", "spq"), ("gemma3", "spq"), ("qwen3_vl_moe", "int8"),
        ("llama4_text", "balanced"), ("falcon_h1", "int8"), ("modernbert-decoder", "gptq-4"), ("modernbert-decoder", "int8"), ("modernbert-decoder", "balanced"), ("mamba", "balanced"), ("kimi_linear", "balanced"),
        *every(100, [("xglm", "int8"), *product((*DENSE, *OTHERS, "qwen3_vl", "llava"), ("int8", "spq"))])[1:],
    ],
)  # fmt: skip
def test_a_type_of_each_kind(tmp_path, model_type, recipe):
    check(model_type, tmp_path, (recipe,))


def test_towers_for_images_are_carried_along_bit_by_bit(tmp_path):
    """In whatever dtype: one of them is kept in 32 bits."""
    source = save_toy("gemma3", tmp_path / "source")
    (file,) = weight_files(source)
    before = load_file(source / file)
    tower = {name for name in before if "vision" in name or "projector" in name}
    assert len(tower) > 10
    for name in tower:
        before[name] = torch.randn(before[name].shape)
    save_file(before, source / file, metadata={"format": "pt"})
    out = made(source, "spq", tmp_path / "out")
    after = {name: t for one in weight_files(out) for name, t in load_file(out / one).items()}
    kept = [one for one in after.values() if one.dtype == torch.float32]
    for name in tower:
        assert any(
            one.shape == before[name].shape and torch.equal(one, before[name]) for one in kept
        ), name


@pytest.mark.parametrize("model_type", every(3, ["arcee", "glm4", "starcoder2", "nanochat", "phi"]))
def test_heads_go_where_the_layer_counts_them(tmp_path, model_type):
    source = save_toy(model_type, tmp_path / "source")
    assert load_skeleton(source).family.head_groups
    calibration = {"dataset": "builtin", "form": "windows", "samples": 4, "length": 64}
    recipe = {"stages": [{"type": "prune-heads", "ratio": 0.34}], "calibration": calibration}
    artifact, file = made(source, recipe, tmp_path / "out"), tmp_path / "found.pt"
    assert forked.call(write_predictions, str(artifact), str(file)) == 0
    found, twin = torch.load(file, weights_only=True), twin_predictions(source, artifact)
    assert abs(divergence(twin, found)) < SAME
    assert 1e-9 < divergence(source_predictions(source), found) < 0.1


def test_a_portable_artifact_of_a_model_with_towers(tmp_path):
    """Stock readers pack what is not named, and would look for codes of the towers."""
    source = save_toy("mistral3", tmp_path / "source")
    artifact, file = made(source, PORTABLE, tmp_path / "out"), tmp_path / "found.pt"
    assert forked.call(write_predictions, str(artifact), str(file)) == 0
    found = torch.load(file, weights_only=True)
    assert 1e-9 < divergence(source_predictions(source), found) < FARTHEST["portable-4"]


def test_every_family_has_a_type(tmp_path):
    types = [*DENSE, "llama", "opt", "phi3", "gpt_neox", "gpt2"]
    found = {load_skeleton(save_toy(one, tmp_path / one)).family for one in types}
    assert found == set(FAMILIES)
