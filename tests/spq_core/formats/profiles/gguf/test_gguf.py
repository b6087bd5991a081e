"""GGUF artifacts: what llama.cpp computes of them is what their weights mean, for every architecture."""

import json
from importlib.util import find_spec
from pathlib import Path

import gguf
import pytest
import torch

from spq_core.artifact.gguf_file import gguf_file, open_gguf
from spq_core.artifact.manifest import read_manifest, verify_files
from spq_core.artifact.read import load_model
from spq_core.compression.compress import compress
from spq_core.data.texts import builtin_text
from spq_core.errors import ArtifactError, UnsupportedModelError
from spq_core.evaluation.llama_cpp import installed
from spq_core.formats.slicing import float_weight
from spq_core.models.clean_copy import SourceModel
from spq_core.models.gguf.architectures import ARCHITECTURES
from spq_core.recipe.document import parse_recipe
from spq_core.workflow.llama_cpp_check import compare
from tests.model_types.toys import save_toy
from tests.models import metaspace_tokenizer, save_tiny

needs_llama_cpp = pytest.mark.skipif(
    installed() is None,
    reason="no package with llama.cpp is installed (xllamacpp, llama-cpp-python)",
)
ROUNDING = 0.05
"""How far 8-bit activations move log-probabilities of a toy, at most; a wrong row or position moves them by one."""
CALIBRATION = {"dataset": "builtin", "form": "windows", "samples": 2, "length": 64}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
LONG = {
    "rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 128,
    "long_factor": [1.0 + at / 4 for at in range(12)], "short_factor": [1.0 + at / 8 for at in range(12)],
}  # fmt: skip
POSITIONS = {
    "llama3": ("llama", LLAMA3),
    "linear": ("llama", {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}),
    "yarn": (
        "qwen3",
        {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64},
    ),
    "longrope": ("phi3", LONG),
}  # fmt: skip


def recipe(*types, method="round", **more):
    stage = {"type": "quantize", "method": method, "types": list(types), **more}
    return parse_recipe({"stages": [stage], "calibration": CALIBRATION, "profile": "gguf"})


def toy(model_type, folder, **changes):
    source = save_toy(model_type, folder)
    path = source / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    if "query_pre_attn_scalar" in config:
        config["query_pre_attn_scalar"] = config["head_dim"]
    path.write_text(json.dumps(config | changes), encoding="utf-8")
    return source


def made(source, out, chosen, name="toy"):
    text = builtin_text() if chosen.needs_calibration else None
    compress(SourceModel(folder=source, name=name), chosen, out, text=text)
    return out


def assert_llama_cpp_agrees(out):
    with torch.no_grad():
        found = compare(out)
    assert found["logits"] < ROUNDING, found
    assert found["text"] == []


@needs_llama_cpp
@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_llama_cpp_computes_what_the_weights_mean(tmp_path, model_type):
    out = made(toy(model_type, tmp_path / "toy"), tmp_path / "out", recipe("Q8_0"))
    assert_llama_cpp_agrees(out)


@needs_llama_cpp
@pytest.mark.parametrize("name", POSITIONS)
def test_stretched_positions_are_those_of_the_source(tmp_path, name):
    model_type, rope = POSITIONS[name]
    source = toy(model_type, tmp_path / "toy", rope_parameters=rope)
    assert_llama_cpp_agrees(made(source, tmp_path / "out", recipe("Q8_0")))


@needs_llama_cpp
@pytest.mark.parametrize(
    "kind",
    ["Q3_K", "IQ4_XS", "Q4_0", "IQ4_NL", "Q4_K", "Q4_1", "Q5_0", "Q5_K", "Q5_1", "Q6_K", "Q8_0"],
)
def test_llama_cpp_reads_every_type_as_it_is_meant(tmp_path, kind):
    source = save_tiny(tmp_path / "tiny", "llama", torch.bfloat16, hidden=256)
    out = made(source, tmp_path / "out", recipe(kind, method="gptq"))
    types = {one.name: one.tensor_type.name for one in gguf.GGUFReader(gguf_file(out)).tensors}
    assert types["blk.0.attn_q.weight"] == kind
    assert_llama_cpp_agrees(out)


@needs_llama_cpp
def test_text_is_cut_as_sentencepiece_does(tmp_path):
    source = save_tiny(tmp_path / "tiny", "llama", torch.bfloat16, vocabulary=512)
    for one in source.glob("token*"):
        one.unlink()
    metaspace_tokenizer(source, builtin_text().calibration[:20000])
    assert_llama_cpp_agrees(made(source, tmp_path / "out", recipe("Q8_0")))


def test_the_file_says_what_hubs_and_clients_look_for(tmp_path):
    source = save_tiny(tmp_path / "tiny", "llama", torch.bfloat16)
    out = made(
        source, tmp_path / "out", recipe("Q4_0", table_type="Q8_0"), name="someone/My-Model-1B"
    )
    file = gguf_file(out)
    assert file.name == "My-Model-1B-spq-Q4_0.gguf"
    assert not list(out.glob("*.safetensors*"))
    said = {name: field.contents() for name, field in gguf.GGUFReader(file).fields.items()}
    assert said["general.file_type"] == gguf.LlamaFileType.MOSTLY_Q4_0
    assert said["general.base_model.0.repo_url"] == "https://huggingface.co/someone/My-Model-1B"
    assert said["llama.context_length"] == 256
    assert said["general.quantized_by"] == "spq"
    verify_files(out, read_manifest(out))
    assert file.name in read_manifest(out).files


def test_the_file_read_back_has_the_weights_in_their_own_order(tmp_path):
    source = save_tiny(tmp_path / "tiny", "llama", torch.bfloat16)
    out = made(source, tmp_path / "out", recipe("Q8_0"))
    found, wanted = load_model(out), load_model(source, torch.float32)
    for name in ("self_attn.q_proj", "self_attn.k_proj", "mlp.down_proj"):
        here = float_weight(found.model.layers[1].get_submodule(name))
        torch.testing.assert_close(
            here, wanted.model.layers[1].get_submodule(name).weight, rtol=0.0, atol=2e-3
        )
    norm = found.model.layers[1].input_layernorm.weight
    torch.testing.assert_close(norm, wanted.model.layers[1].input_layernorm.weight)


def test_a_file_of_another_model_is_refused(tmp_path):
    source = save_tiny(tmp_path / "tiny", "llama", torch.bfloat16)
    out = made(source, tmp_path / "out", recipe("Q8_0"))
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    (out / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 4}))
    blocked = open_gguf(out, gguf_file(out))
    with pytest.raises(ArtifactError, match=r"has no 'blk\.3"):
        blocked.layer(3)


@pytest.mark.parametrize(
    ("model_type", "changes", "said"),
    [
        ("opt", {}, "models of type opt are not written for llama.cpp"),
        ("gemma3_text", {"query_pre_attn_scalar": 7}, "query_pre_attn_scalar is 7"),
        ("smollm3", {"no_rope_layers": [0, 1, 0]}, "no_rope_layers say otherwise"),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "of type dynamic"),
    ],
)  # fmt: skip
def test_what_llama_cpp_would_compute_otherwise_is_refused_before_any_work(
    tmp_path, model_type, changes, said
):
    source = save_toy(model_type, tmp_path / "toy")
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    (source / "config.json").write_text(json.dumps(config | changes), encoding="utf-8")
    with pytest.raises(UnsupportedModelError, match="profile gguf") as refusal:
        made(source, tmp_path / "out", recipe("Q8_0"))
    assert said in str(refusal.value)
    assert not Path(tmp_path / "out").exists()
    assert not list(tmp_path.glob("out*"))


def test_a_killed_run_goes_on_to_the_same_file(tmp_path):
    source = save_tiny(tmp_path / "tiny", "llama", torch.bfloat16)
    chosen = recipe("Q4_0", method="gptq")
    whole = made(source, tmp_path / "whole", chosen)

    class Killed(BaseException):
        pass

    class Kill:
        def __getattr__(self, name):
            return lambda *_, **__: None

        def advance(self, step, *_):
            if step == "model.layers.1":
                raise Killed

    with pytest.raises(Killed):
        compress(
            SourceModel(folder=source, name="toy"), chosen, tmp_path / "out", text=builtin_text(), progress=Kill()
        )  # fmt: skip
    compress(
        SourceModel(folder=source, name="toy"), chosen, tmp_path / "out", text=builtin_text(), resume=True
    )  # fmt: skip
    assert gguf_file(tmp_path / "out").read_bytes() == gguf_file(whole).read_bytes()


def test_llama_cpp_is_part_of_what_developers_install():
    assert find_spec("xllamacpp") is not None or find_spec("llama_cpp") is not None
