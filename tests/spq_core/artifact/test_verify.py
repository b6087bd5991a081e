"""What the public loader refuses: `from_pretrained`, not our own functions."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from spq_core.artifact.manifest import MANIFEST_FILE
from spq_core.errors import ArtifactError, DigestMismatchError
from spq_core.recipe.document import parse_recipe
from tests.spq_core.compression.test_compress import SMALL, run

RECIPE = parse_recipe(
    {
        "stages": [
            {"type": "svd", "variance": 0.9},
            {"type": "quantize", "method": "gptq", "bits": 4, "group_size": 32},
        ],
        "calibration": SMALL | {"form": "windows"},
    }
)
SHARD = "model-00002-of-00004.safetensors"


@pytest.fixture
def artifact(tmp_path, tiny_llama):
    run(tiny_llama, tmp_path / "out", RECIPE)
    return tmp_path / "out"


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder)


def without_manifest(folder):
    """As from_pretrained finds a Hub repository: weights and configuration alone."""
    (folder / MANIFEST_FILE).unlink()
    return folder


def rewrite(folder, change):
    tensors = load_file(folder / SHARD)
    change(tensors)
    save_file(tensors, folder / SHARD, metadata={"format": "pt"})


def some_name(tensors, ending):
    return next(name for name in sorted(tensors) if name.endswith(ending))


def test_a_whole_artifact_loads_with_and_without_its_manifest(artifact):
    with torch.no_grad():
        ids = torch.arange(8)[None]
        assert torch.equal(load(artifact)(ids).logits, load(without_manifest(artifact))(ids).logits)


def test_a_flipped_bit_is_found(artifact):
    whole = bytearray((artifact / SHARD).read_bytes())
    whole[-40] ^= 4
    (artifact / SHARD).write_bytes(whole)
    with pytest.raises(DigestMismatchError, match=SHARD):
        load(artifact)


@pytest.mark.parametrize("left", [0, 5, 400, -1])
def test_a_file_cut_short_is_named(artifact, left):
    (artifact / SHARD).write_bytes((artifact / SHARD).read_bytes()[:left])
    with pytest.raises(ArtifactError, match=SHARD):
        load(without_manifest(artifact))


def test_a_missing_shard_is_named(artifact):
    (artifact / SHARD).unlink()
    with pytest.raises(OSError, match=SHARD):
        load(artifact)


@pytest.mark.parametrize("ending", ["q_proj.down.packed", "up_proj.scale", "layernorm.weight"])
def test_a_missing_tensor_is_not_made_up(artifact, ending):
    missing = []

    def remove(tensors):
        missing.append(some_name(tensors, ending))
        del tensors[missing[0]]

    rewrite(artifact, remove)
    with pytest.raises(ArtifactError) as error:
        load(without_manifest(artifact))
    assert missing[0] in str(error.value)


def test_a_tensor_nobody_asked_for_is_named(artifact):
    rewrite(artifact, lambda tensors: tensors.update(stray=torch.zeros(2)))
    with pytest.raises(ArtifactError, match=f"{SHARD}.*unexpected tensor 'stray'"):
        load(without_manifest(artifact))


def test_another_shape_or_dtype_is_named(artifact):
    def shorten(tensors):
        name = some_name(tensors, "up_proj.packed")
        tensors[name] = tensors[name][:-1].clone()

    rewrite(artifact, shorten)
    with pytest.raises(ArtifactError, match=f"{SHARD}.*up_proj.packed' has shape"):
        load(without_manifest(artifact))

    def retype(tensors):
        name = some_name(tensors, "up_proj.packed")
        tensors[name] = torch.zeros(tensors[name].shape[0] + 1, tensors[name].shape[1])

    rewrite(artifact, retype)
    with pytest.raises(ArtifactError, match="up_proj.packed' has dtype F32, it should be U8"):
        load(artifact)


@pytest.mark.parametrize("rank", [1, 1 << 30])
def test_layouts_that_disagree_with_the_weights_are_refused_before_memory_is_taken(artifact, rank):
    config = json.loads((artifact / "config.json").read_text())
    modules = config["quantization_config"]["modules"]
    name = next(name for name, layout in modules.items() if layout["kind"] == "low_rank")
    modules[name]["down"]["n_out"] = modules[name]["up"]["n_in"] = rank
    (artifact / "config.json").write_text(json.dumps(config))
    with pytest.raises(ArtifactError, match=name):
        load(without_manifest(artifact))
