"""The portable profile, judged by the library whose form it is and by stock transformers."""

import json
import subprocess
import sys

import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from spq_core.artifact.load_check import compare
from spq_core.artifact.manifest import read_manifest, verify_files
from spq_core.compression.compress import SourceModel, compress
from spq_core.data.texts import builtin_text
from spq_core.errors import RecipeError, UnsupportedModelError
from spq_core.formats.packed.linear import PackedLinear
from spq_core.formats.packing import pack
from spq_core.formats.profiles.compressed_tensors.writing import PortableLinear
from spq_core.methods.quantization.grid import choose_grid, round_to_grid
from spq_core.recipe.catalog import resolve
from spq_core.recipe.document import parse_recipe
from tests.marks import every
from tests.models import FAMILIES, save_tiny

pytestmark = pytest.mark.slow

WINDOWS = {"dataset": "builtin", "form": "windows", "samples": 4, "length": 64}
QUANTIZE = {"type": "quantize", "method": "gptq", "bits": 4, "group_size": 32, "embedding": False}
PRUNE = {"type": "prune", "score": "wanda", "layer_ratios": "uniform", "max_ratio": 0.3}


def portable(*stages):
    return parse_recipe({"stages": list(stages), "calibration": WINDOWS, "profile": "portable"})


def run(tmp_path, family, recipe):
    source = save_tiny(tmp_path / "source", family, torch.bfloat16)
    compress(
        SourceModel(folder=source, name="tiny"), recipe, tmp_path / "out",
        text=builtin_text(), probe_file=tmp_path / "probe",
    )  # fmt: skip
    return tmp_path / "out"


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("n_out", "n_in", "group"), [(40, 96, 32), (33, 72, None), (5, 9, None)])
def test_the_library_reads_the_weights_we_mean(bits, n_out, n_in, group):
    weight = torch.randn(n_out, n_in, generator=torch.Generator().manual_seed(1)) * 0.02
    grid = choose_grid(weight, bits, group)
    codes = round_to_grid(weight, grid).codes
    linear = PackedLinear(
        pack(codes, bits), grid.scale.half(), grid.zero,
        bits=bits, n_in=n_in, group_size=grid.group_size,
    )  # fmt: skip
    weights = QuantizationArgs(
        num_bits=bits, type="int", symmetric=True,
        strategy="channel" if group is None else "group", group_size=group,
    )  # fmt: skip
    scheme = QuantizationScheme(targets=["Linear"], weights=weights)
    stored = PortableLinear(linear, torch.bfloat16).state_dict()
    read = BaseCompressor.get_value_from_registry("pack-quantized").decompress(stored, scheme)
    # the library multiplies in the scale's dtype
    wanted = linear.dequantized().to(torch.bfloat16)
    torch.testing.assert_close(read["weight"], wanted, rtol=0, atol=0)


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - {"gpt2"}))
def test_stock_transformers_computes_what_the_run_had_in_memory(tmp_path, family):
    folder = run(tmp_path, family, portable(PRUNE, QUANTIZE))
    verify_files(folder, read_manifest(folder))
    assert read_manifest(folder).profile == "portable"
    with torch.no_grad():
        found = compare(folder, tmp_path / "probe")
    assert found["embedding"] < 0.005  # Gemma scales it by a factor in its own dtype
    assert found["logits"] < 0.015
    config = json.loads((folder / "config.json").read_text())
    assert "spq" not in json.dumps(config)
    assert 128 in config.values()  # 160 neurons less 30%, rounded up to a multiple of 128


WITHOUT_US = """
import sys
sys.modules["spq_core"] = None
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
made = model.generate(torch.arange(3, 9)[None], max_new_tokens=4, do_sample=False)
print(AutoTokenizer.from_pretrained(sys.argv[1]).decode(made[0]) is not None, made.shape[1])
"""


@pytest.mark.parametrize("name", every(2, ["portable-4", "portable-8"]))
def test_it_loads_where_our_package_is_not(tmp_path, name):
    recipe = resolve({"extends": name, "calibration": WINDOWS})
    source = save_tiny(tmp_path / "source", "llama", torch.bfloat16, hidden=192)
    inner = json.loads((source / "config.json").read_text())["intermediate_size"]
    if name == "portable-4" and inner % 64:
        stages = [recipe.stages[0].model_copy(update={"group_size": 32})]
        recipe = recipe.model_copy(update={"stages": tuple(stages)})
    compress(SourceModel(folder=source, name="m"), recipe, tmp_path / "out", text=builtin_text())
    command = [sys.executable, "-c", WITHOUT_US, str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["True", "10"]
    with safe_open(tmp_path / "out" / "model-00001-of-00004.safetensors", "pt") as handle:
        assert "model.layers.0.mlp.up_proj.weight_packed" in handle.keys()  # noqa: SIM118


def test_pruning_alone_is_an_ordinary_narrower_model(tmp_path):
    folder = run(tmp_path, "llama", portable(PRUNE))
    config = json.loads((folder / "config.json").read_text())
    assert config["intermediate_size"] == 128
    assert "quantization_config" not in config
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.model.layers[0].mlp.up_proj.weight.shape[0] == 128


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        ({"type": "svd"}, "low-rank"),
        ({"type": "prune-heads"}, "numbers of heads"),
        ({"type": "prune"}, "set layer_ratios: uniform"),
        ({"type": "quantize", "bits": 3, "method": "gptq", "embedding": False}, "3 bits"),
        ({"type": "quantize", "mode": "tensor", "embedding": False}, "per row or group"),
        (QUANTIZE | {"symmetric": False}, "set symmetric: true"),
        ({"type": "quantize"}, "set embedding: false"),
        ({"type": "recover", "adapters": "kept"}, "merge them"),
    ],
)
def test_what_has_no_portable_form_is_refused_with_the_reason(stage, words):
    with pytest.raises(RecipeError, match=f"profile portable: .*{words}"):
        portable(stage)


def test_targets_and_codes_by_entropy_are_refused():
    with pytest.raises(RecipeError, match="profile portable"):
        resolve({"extends": "balanced", "profile": "portable"})


def test_models_and_groups_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(UnsupportedModelError, match="gpt2 models store their matrices transposed"):
        run(tmp_path, "gpt2", portable(QUANTIZE))
    (tmp_path / "two").mkdir()
    with pytest.raises(RecipeError, match="96 columns, which groups of 64 do not divide"):
        run(tmp_path / "two", "llama", portable(QUANTIZE | {"group_size": 64}))
