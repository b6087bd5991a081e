"""Compress tiny models of every family, save, load, and compare with an independent computation."""

import io
import itertools
import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from spq_core.artifact.manifest import read_manifest, verify_files
from spq_core.artifact.read import load_artifact
from spq_core.compression.compress import SourceModel, compress
from spq_core.data.texts import builtin_text
from spq_core.errors import (
    ArtifactError,
    DigestMismatchError,
    NumericalError,
    OutputExistsError,
    RecipeError,
    UnsafeModelError,
    UnsupportedModelError,
    WeightsMismatchError,
)
from spq_core.formats.int8.linear import Int8Linear
from spq_core.formats.low_rank.linear import LowRankLinear
from spq_core.formats.slicing import AnyLinear, bias_of, float_weight
from spq_core.models.tokenizer import load_tokenizer
from spq_core.recipe.catalog import resolve
from spq_core.recipe.document import parse_recipe
from tests.models import FAMILIES, save_tiny, some_ids

SVD = {"type": "svd", "variance": 0.9}
PRUNE = {"type": "prune", "max_ratio": 0.3, "min_ratio": 0.05}
QUANTIZE = {"type": "quantize", "mode": "mix_percentile", "embedding": False}
SMALL = {"dataset": "builtin", "samples": 3, "length": 32}
PAPER_LIKE = parse_recipe({"stages": [SVD, PRUNE, QUANTIZE], "calibration": SMALL})


def run(folder, out, recipe=PAPER_LIKE):
    source = SourceModel(folder=folder, name="tiny")
    exact = recipe.model_copy(update={"floats": "source"})
    return compress(source, exact, out, text=builtin_text())


def dense_twin(artifact, folder):
    """The source architecture with the artifact's weights as plain float matrices.

    An oracle for the loader: it knows nothing of our kernels. Pruned neurons become zero columns.
    """
    compressed = load_artifact(artifact, torch.float32)
    twin = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if compressed.get_output_embeddings() is not None:
        twin.get_output_embeddings().weight = torch.nn.Parameter(
            twin.get_output_embeddings().weight.detach().clone()
        )
    for name, module in compressed.named_modules():
        if isinstance(module, AnyLinear) and not name.endswith((".up", ".down")):
            target = twin.get_submodule(name)
            weight, bias = float_weight(module), bias_of(module)
            full = target.weight if isinstance(target, torch.nn.Linear) else target.weight.T
            rows, columns = places(name, weight.shape[0], full.shape[0]), weight.shape[1]
            with torch.no_grad():
                full.zero_()
                full[rows, :columns] = weight
                if bias is not None:
                    target.bias.zero_()
                    target.bias[rows] = bias.float()
    embedding = compressed.get_input_embeddings()
    if not isinstance(embedding, torch.nn.Embedding):
        with torch.no_grad():
            table = embedding(torch.arange(twin.config.vocab_size)) / embedding.output_scale
            twin.get_input_embeddings().weight.copy_(table)
    return compressed.eval(), twin.eval()


def places(name, rows, full):
    """Where a matrix's remaining rows stand in the architecture's own; fused halves keep their starts."""
    if not name.endswith("gate_up_proj"):
        return torch.arange(rows)
    return torch.cat([torch.arange(rows // 2), full // 2 + torch.arange(rows // 2)])


def relative_difference(a, b):
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("recipe", ["paper-like", "int8"])
def test_loaded_artifact_computes_what_its_weights_say(tmp_path, family, recipe):
    folder = save_tiny(tmp_path / "source", family)
    chosen = PAPER_LIKE if recipe == "paper-like" else resolve("int8")
    report = run(folder, tmp_path / "out", chosen)
    compressed, twin = dense_twin(tmp_path / "out", folder)
    ids = some_ids()
    with torch.no_grad():
        assert relative_difference(compressed(ids).logits, twin(ids).logits) < 1e-3
        # Short inputs take the packed kernel, which rounds activations to bfloat16.
        assert relative_difference(compressed(ids[:, :5]).logits, twin(ids[:, :5]).logits) < 3e-2
    generated = compressed.generate(ids[:, :5], max_new_tokens=4, do_sample=False)
    assert generated.shape == (1, 9)
    assert report.artifact_bytes < report.source_bytes
    verify_files(tmp_path / "out", read_manifest(tmp_path / "out"))


@pytest.mark.parametrize("order", list(itertools.permutations([SVD, PRUNE, QUANTIZE])))
def test_any_order_of_stages(tmp_path, tiny_llama, order):
    recipe = parse_recipe({"stages": list(order), "calibration": SMALL})
    report = run(tiny_llama, tmp_path / "out", recipe)
    done = [one.stage for one in report.modules if one.applied]
    assert list(dict.fromkeys(done)) == [stage["type"] for stage in order]
    compressed, twin = dense_twin(tmp_path / "out", tiny_llama)
    with torch.no_grad():
        assert relative_difference(compressed(some_ids()).logits, twin(some_ids()).logits) < 1e-3


def test_a_tied_embedding_quantized_before_another_pass_stays_tied(tmp_path, tiny_llama):
    everything = {"type": "quantize", "mode": "channel", "embedding": True}
    recipe = parse_recipe({"stages": [everything, PRUNE], "calibration": SMALL})
    run(tiny_llama, tmp_path / "out", recipe)
    compressed, twin = dense_twin(tmp_path / "out", tiny_llama)
    assert compressed.lm_head.codes is compressed.model.embed_tokens.codes
    with torch.no_grad():
        assert relative_difference(compressed(some_ids()).logits, twin(some_ids()).logits) < 1e-3


@pytest.mark.parametrize("mode", ["tensor", "channel", "mix_name", "mix_percentile", "mix_meanstd"])
def test_every_scale_mode_loads(tmp_path, tiny_llama, mode):
    recipe = parse_recipe({"stages": [{"type": "quantize", "mode": mode, "embedding": False}]})
    report = run(tiny_llama, tmp_path / "out", recipe)
    scales = {one.layer: one.figures["scales"] for one in report.modules}
    assert len(scales) == 3 * 7 + 1
    compressed, twin = dense_twin(tmp_path / "out", tiny_llama)
    with torch.no_grad():
        assert relative_difference(compressed(some_ids()).logits, twin(some_ids()).logits) < 1e-3


@pytest.mark.parametrize("stage", [SVD, PRUNE])
def test_stages_without_quantization_keep_floats(tmp_path, tiny_llama, stage):
    recipe = parse_recipe({"stages": [stage], "calibration": SMALL})
    run(tiny_llama, tmp_path / "out", recipe)
    compressed, twin = dense_twin(tmp_path / "out", tiny_llama)
    with torch.no_grad():
        torch.testing.assert_close(
            compressed(some_ids()).logits, twin(some_ids()).logits, rtol=1e-4, atol=1e-4
        )


def test_stages_do_what_they_are_for(tmp_path, tiny_llama):
    run(tiny_llama, tmp_path / "out")
    model = load_artifact(tmp_path / "out")
    kinds = {name: type(module) for name, module in model.named_modules()}
    assert kinds["model.layers.0.self_attn.q_proj"] is LowRankLinear
    assert kinds["lm_head"] is Int8Linear
    widths = [layer.mlp.up_proj.out_features for layer in model.model.layers]
    assert all(width < 160 for width in widths)
    assert len(set(widths)) == 3
    floating = {p.dtype for n, p in model.named_parameters() if n.endswith("codes")}
    assert floating == {torch.int8}


def test_tied_weights_are_stored_and_held_once(tmp_path, tiny_llama):
    run(tiny_llama, tmp_path / "out", resolve("int8"))
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert "lm_head.codes" not in index["weight_map"]
    model = load_artifact(tmp_path / "out")
    assert model.lm_head.codes is model.model.embed_tokens.codes


@pytest.mark.parametrize("recipe", ["paper-like", "int8"])
def test_save_load_save_gives_the_same_tensors(tmp_path, tiny_llama, recipe):
    run(tiny_llama, tmp_path / "out", PAPER_LIKE if recipe == "paper-like" else resolve("int8"))
    model = load_artifact(tmp_path / "out")
    model.save_pretrained(tmp_path / "again")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again")
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    with torch.no_grad():
        assert torch.equal(again(some_ids()).logits, model(some_ids()).logits)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_scales_stay_exact_in_every_activation_dtype(tmp_path, tiny_llama, dtype):
    run(tiny_llama, tmp_path / "out", resolve("int8"))
    model = load_artifact(tmp_path / "out", dtype)
    exact = load_artifact(tmp_path / "out", torch.float32)
    cast = load_artifact(tmp_path / "out", torch.float32).to(dtype)
    name = "model.layers.0.mlp.up_proj"
    for one in (model, cast):
        assert torch.equal(one.get_submodule(name).scale, exact.get_submodule(name).scale)
        with torch.no_grad():
            logits = one(some_ids()).logits
        assert logits.dtype == dtype
        assert logits.isfinite().all()


def test_equal_runs_give_equal_bytes(tmp_path, tiny_llama):
    for name in ("one", "two"):
        run(tiny_llama, tmp_path / name)
    one, two = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
        for name in ("one", "two")
    )
    assert one == two


def test_without_the_package_loading_fails_loudly(tmp_path, tiny_llama):
    run(tiny_llama, tmp_path / "out")
    script = (
        "from transformers import AutoModelForCausalLM\n"
        f"AutoModelForCausalLM.from_pretrained({str(tmp_path / 'out')!r})\n"
    )
    plain = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert plain.returncode != 0
    assert "spq_llama" in plain.stderr
    for script_with in (
        f"import spq_core\n{script}",
        script.replace("\n", "\nimport spq_core\n", 1),
    ):
        with_us = subprocess.run(
            [sys.executable, "-c", script_with], capture_output=True, text=True, check=False
        )
        assert with_us.returncode == 0, with_us.stderr


def test_importing_the_package_does_not_import_torch():
    script = (
        "import sys, spq_core, spq_core.recipe.catalog, app.main; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_damage_is_named(tmp_path, tiny_llama):
    run(tiny_llama, tmp_path / "out", resolve("int8"))
    shard = tmp_path / "out" / "model-00002-of-00004.safetensors"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(DigestMismatchError, match=shard.name):
        load_artifact(tmp_path / "out")
    shard.unlink()
    with pytest.raises(ArtifactError, match=f"{shard.name}.*missing"):
        load_artifact(tmp_path / "out")


def damaged(folder, tmp_path, change):
    target = tmp_path / "damaged"
    target.mkdir()
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    change(target)
    return target


def test_nan_in_a_weight_is_an_error_and_leaves_nothing(tmp_path, tiny_llama):
    def poison(folder):
        tensors = load_file(folder / "model.safetensors")
        tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = float("nan")
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(NumericalError, match="model.layers.1.*up_proj"):
        run(damaged(tiny_llama, tmp_path, poison), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["damaged"]


@pytest.mark.parametrize(
    ("changes", "error", "word"),
    [
        ({"model_type": "t5"}, UnsupportedModelError, "t5.*encoder-decoder"),
        ({"quantization_config": {"quant_method": "gptq"}}, UnsafeModelError, "quantized"),
        ({"model_type": "odd", "auto_map": {"AutoModel": "e.M"}}, UnsafeModelError, "auto_map"),
        ({"model_type": "spq_llama"}, UnsafeModelError, "artifact already"),
        (
            {"hidden_size": 88},
            WeightsMismatchError,
            r"\[259, 96\], config.json asks for \[259, 88\]",
        ),
    ],
)
def test_unsuitable_models_are_refused_with_the_reason(tmp_path, tiny_llama, changes, error, word):
    def change(folder):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | changes))

    with pytest.raises(error, match=word):
        run(damaged(tiny_llama, tmp_path, change), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_pickled_weights_are_never_opened(tmp_path, tiny_llama):
    def change(folder):
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")

    with pytest.raises(UnsafeModelError, match="pytorch_model.bin can run code"):
        run(damaged(tiny_llama, tmp_path, change), tmp_path / "out")


def test_an_existing_folder_is_not_overwritten(tmp_path, tiny_llama):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("keep")
    with pytest.raises(OutputExistsError, match="not empty"):
        run(tiny_llama, tmp_path / "out")
    assert (tmp_path / "out" / "precious").read_text() == "keep"


def test_a_calibrated_recipe_without_text_says_so(tmp_path, tiny_llama):
    with pytest.raises(RecipeError, match="calibration text 'builtin'"):
        compress(SourceModel(folder=tiny_llama, name="t"), PAPER_LIKE, tmp_path / "out")


def test_evaluation_text_as_calibration_is_reported(tmp_path, tiny_llama):
    calibration = SMALL | {"allow_evaluation_text": True}
    recipe = parse_recipe({"stages": [PRUNE], "calibration": calibration})
    report = run(tiny_llama, tmp_path / "out", recipe)
    assert report.calibration["is_evaluation_text"] is True
    assert read_manifest(tmp_path / "out").calibration["is_evaluation_text"] is True


EVIL_TOKENIZER = {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}}


def test_code_beside_a_tokenizer_is_never_run(tmp_path, tiny_llama, monkeypatch):
    def plant(folder):
        config = json.loads((folder / "tokenizer_config.json").read_text())
        (folder / "tokenizer_config.json").write_text(json.dumps(config | EVIL_TOKENIZER))
        (folder / "evil.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w')\n")

    evil = damaged(tiny_llama, tmp_path, plant)
    with pytest.raises(
        ArtifactError, match="no usable tokenizer"
    ):  # without that code, which never runs
        run(evil, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    # The loader itself refuses as well, even if somebody says yes on stdin.
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 9))
    with pytest.raises(ArtifactError, match="no usable tokenizer"):
        load_tokenizer(evil)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("name", ["num_hidden_layers", "hidden_size", "head_dim", "vocab_size"])
def test_model_bombs_are_refused_from_their_config(tmp_path, tiny_llama, name):
    def inflate(folder):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {name: 20_000_000_000}))

    with pytest.raises(UnsafeModelError, match=f"{name} is 20000000000"):
        run(damaged(tiny_llama, tmp_path, inflate), tmp_path / "out")


def test_a_second_head_under_a_tied_config_is_not_thrown_away(tmp_path, tiny_llama):
    def add_head(folder, change):
        tensors = load_file(folder / "model.safetensors")
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + change
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    run(damaged(tiny_llama, tmp_path, lambda folder: add_head(folder, 0.0)), tmp_path / "same")
    (tmp_path / "damaged").rename(tmp_path / "first")
    with pytest.raises(WeightsMismatchError, match="hold a different lm_head.weight"):
        run(damaged(tiny_llama, tmp_path, lambda folder: add_head(folder, 1.0)), tmp_path / "other")


def test_only_the_weights_transformers_would_load_are_used(tmp_path, tiny_llama):
    def stray(folder):
        tensors = load_file(folder / "model.safetensors")
        doubled = {name: tensor * 2 for name, tensor in tensors.items()}
        save_file(doubled, folder / "training_extra.safetensors")
        weight_map = dict.fromkeys(tensors, "training_extra.safetensors")
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))

    plain = run(tiny_llama, tmp_path / "plain", resolve("int8"))
    odd = run(damaged(tiny_llama, tmp_path, stray), tmp_path / "odd", resolve("int8"))
    assert odd.source_bytes - plain.source_bytes < 10_000
    for path in (tmp_path / "plain").glob("*.safetensors"):
        assert path.read_bytes() == (tmp_path / "odd" / path.name).read_bytes()


def test_weights_the_manifest_does_not_list_are_refused(tmp_path, tiny_llama):
    run(tiny_llama, tmp_path / "out")
    (tmp_path / "out" / "model.safetensors").write_bytes(
        (tiny_llama / "model.safetensors").read_bytes()
    )
    with pytest.raises(ArtifactError, match="model.safetensors: not listed"):
        load_artifact(tmp_path / "out")


def test_a_link_that_its_own_user_made_is_carried_as_a_file(tmp_path, tiny_llama):
    """A service refuses it (`refuse_links_outside`)."""
    (tmp_path / "secret").write_text("my own terms")
    source = damaged(
        tiny_llama, tmp_path, lambda folder: (folder / "LICENSE").symlink_to(tmp_path / "secret")
    )
    run(source, tmp_path / "out")
    assert (tmp_path / "out" / "LICENSE").read_text() == "my own terms"
    assert not (tmp_path / "out" / "LICENSE").is_symlink()
