"""Models that are quantized already: widened where that is allowed, else refused by name."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from spq_core.compression.compress import compress
from spq_core.errors import ArtifactError, UnsafeModelError
from spq_core.estimate.estimate import estimate, folder_shapes
from spq_core.models.clean_copy import SourceModel, clean_copy
from spq_core.models.quantized import widened_copy
from spq_core.models.quantized.values import from_mxfp4, from_scaled
from spq_core.models.reading import Reading
from spq_core.progress import Silent
from spq_core.recipe.catalog import resolve
from tests.models import LLAMA_SIZES, byte_tokenizer, save_tiny, some_ids
from tests.quantized_models import store_fp8_blocks, store_mxfp4, store_rows

ALLOWED = Reading(allow_requantize=True)


def source_of(folder, reading=ALLOWED):
    return SourceModel(folder=folder, name=folder.name, reading=reading)


def weights_of(folder):
    return {
        name: value
        for file in sorted(folder.glob("*.safetensors"))
        for name, value in load_file(file).items()
    }


def save_gpt_oss(folder):
    torch.manual_seed(7)
    sizes = LLAMA_SIZES | {
        "hidden_size": 64, "intermediate_size": 32, "num_local_experts": 3, "num_experts_per_tok": 2, "head_dim": 16,
    }  # fmt: skip
    config = AutoConfig.for_model("gpt_oss", **sizes)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


STORES = {
    "fp8 in blocks": lambda folder: store_fp8_blocks(save_tiny(folder, dtype=torch.bfloat16)),
    "fp8 in ragged blocks": lambda folder: store_fp8_blocks(
        save_tiny(folder, dtype=torch.bfloat16), 64
    ),
    "fp8 with powers of two": lambda folder: store_fp8_blocks(
        save_tiny(folder, dtype=torch.bfloat16), 32, torch.float8_e8m0fnu
    ),
    "fp8 in rows": lambda folder: store_rows(save_tiny(folder, dtype=torch.bfloat16), "float"),
    "int8 in rows": lambda folder: store_rows(save_tiny(folder, dtype=torch.bfloat16), "int"),
    "mxfp4": lambda folder: store_mxfp4(save_gpt_oss(folder)),
}


@pytest.mark.parametrize("stored", STORES)
def test_a_copy_has_what_codes_and_scales_stand_for(tmp_path, stored):
    wanted = STORES[stored](tmp_path / "quantized")
    with clean_copy(source_of(tmp_path / "quantized")) as copy:
        found = weights_of(copy.folder)
        assert "quantization_config" not in json.loads((copy.folder / "config.json").read_text())
        assert "quantized already" in copy.notes[-1]
        AutoModelForCausalLM.from_pretrained(copy.folder)(some_ids())
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert torch.equal(found[name].float(), value.float()), name


@pytest.mark.parametrize("stored", STORES)
def test_it_is_compressed_only_where_that_is_allowed(tmp_path, stored):
    STORES[stored](tmp_path / "quantized")
    refused = source_of(tmp_path / "quantized", Reading())
    with pytest.raises(UnsafeModelError, match=r"quantized already.*allow_requantize") as error:
        compress(refused, resolve("int8"), tmp_path / "out", text=None)
    assert error.value.code == "already_quantized"
    report = compress(
        source_of(tmp_path / "quantized"), resolve("int8"), tmp_path / "out", text=None
    )
    shapes = folder_shapes(tmp_path / "quantized", ALLOWED)
    expected = estimate(resolve("int8"), shapes).artifact_bytes
    assert abs(report.artifact_bytes / expected.expected - 1) < 0.05
    assert any("quantized already" in note for note in report.notes)


def test_mxfp4_is_what_transformers_reads():
    generator = torch.Generator().manual_seed(1)
    blocks = torch.randint(0, 256, (2, 6, 4, 16), dtype=torch.uint8, generator=generator)
    scales = torch.randint(110, 140, (2, 6, 4), dtype=torch.uint8, generator=generator)
    assert torch.equal(from_mxfp4(blocks, scales), convert_moe_packed_tensors(blocks, scales))


def test_a_file_for_each_part_when_there_is_much(tmp_path, monkeypatch):
    monkeypatch.setattr(widened_copy, "FILE_BYTES", 100_000)
    wanted = store_fp8_blocks(save_tiny(tmp_path / "quantized", dtype=torch.bfloat16))
    with clean_copy(source_of(tmp_path / "quantized")) as copy:
        assert len(list(copy.folder.glob("model-*.safetensors"))) > 2
        assert weights_of(copy.folder).keys() == wanted.keys()
        model = AutoModelForCausalLM.from_pretrained(copy.folder)
    assert torch.equal(
        model.model.layers[1].mlp.down_proj.weight.bfloat16(),
        wanted["model.layers.1.mlp.down_proj.weight"],
    )


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"quant_method": "gptq", "bits": 4}, "gptq"),
        ({"quant_method": "awq"}, "awq"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
        ({"quant_method": "compressed-tensors", "format": "pack-quantized"}, "pack-quantized"),
        ({"quant_method": ["fp8"]}, r"\['fp8'\]"),
        (
            {
                "quant_method": "compressed-tensors",
                "format": "float-quantized",
                "transform_config": {"a": 1},
            },
            "transform_config",
        ),
        ({"quant_method": "a\x1b[31m"}, r"a\\x1b"),
        ("fp8", "fp8"),
    ],
)
def test_other_forms_are_refused_by_name(tmp_path, settings, named):
    folder = save_tiny(tmp_path / "quantized")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
    for reading in (Reading(), ALLOWED):
        with pytest.raises(UnsafeModelError, match=named):
            compress(source_of(folder, reading), resolve("int8"), tmp_path / "out", text=None)


def damage(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


NAME = "model.layers.0.mlp.up_proj.weight"
DAMAGES = {
    "no scales": lambda tensors: tensors.pop(f"{NAME}_scale_inv"),
    "scales of another shape": lambda tensors: tensors.update(
        {f"{NAME}_scale_inv": torch.ones(7, 7)}
    ),
    "zero points": lambda tensors: tensors.update({f"{NAME}_zero_point": torch.ones(1)}),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_parts_that_do_not_go_together_are_named(tmp_path, kind):
    store_fp8_blocks(save_tiny(tmp_path / "quantized", dtype=torch.bfloat16))
    damage(tmp_path / "quantized", DAMAGES[kind])
    with pytest.raises(
        ArtifactError, match=r"model\.safetensors: 'model\.layers\.0\.mlp\.up_proj\.weight'"
    ):
        compress(source_of(tmp_path / "quantized"), resolve("int8"), tmp_path / "out", text=None)


def restate(folder, **settings):
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = config["quantization_config"] | settings
    (folder / "config.json").write_text(json.dumps(config))


def test_the_size_of_blocks_is_never_guessed(tmp_path):
    """Of 96 rows, blocks of 64 have as many scales as blocks of 48."""
    wanted = store_fp8_blocks(save_tiny(tmp_path / "quantized", dtype=torch.bfloat16), 64)
    restate(tmp_path / "quantized", weight_block_size=None)
    with pytest.raises(ArtifactError, match="a block of a size that config.json states"):
        folder_shapes(tmp_path / "quantized", ALLOWED)
    groups = {"group_0": {"weights": {"strategy": "block", "block_structure": "64x64"}}}
    restate(
        tmp_path / "quantized",
        quant_method="compressed-tensors",
        format="float-quantized",
        config_groups=groups,
    )
    with clean_copy(source_of(tmp_path / "quantized")) as copy:
        found = weights_of(copy.folder)
    for name, value in wanted.items():
        assert torch.equal(found[name].float(), value.float()), name
    for odd in (["128", "x"], "128", [0, 0], [128], {"a": 1}):
        restate(tmp_path / "quantized", weight_block_size=odd)
        with pytest.raises(UnsafeModelError, match="expected two sizes"):
            folder_shapes(tmp_path / "quantized", ALLOWED)


def test_one_scale_for_a_tensor():
    codes = torch.tensor([[1, -2], [3, 4]], dtype=torch.int8)
    assert from_scaled(codes, torch.tensor([0.5]), None).tolist() == [[0.5, -1.0], [1.5, 2.0]]


class InterruptedAt(Silent):
    def __init__(self, block):
        self.block = block

    def advance(self, message):
        if message == self.block:
            raise KeyboardInterrupt


def test_a_run_that_was_killed_goes_on_with_the_same_weights(tmp_path):
    """They are widened anew, into a folder of another name."""
    store_fp8_blocks(save_tiny(tmp_path / "quantized", dtype=torch.bfloat16))
    source, recipe = source_of(tmp_path / "quantized"), resolve("int8")
    compress(source, recipe, tmp_path / "whole", text=None)
    with pytest.raises(KeyboardInterrupt):
        compress(
            source, recipe, tmp_path / "out", text=None, progress=InterruptedAt("model.layers.1")
        )
    compress(source, recipe, tmp_path / "out", text=None, resume=True)
    assert weights_of(tmp_path / "out").keys() == weights_of(tmp_path / "whole").keys()
    for name, value in weights_of(tmp_path / "whole").items():
        assert torch.equal(weights_of(tmp_path / "out")[name], value), name
