"""What POST /estimates refuses, POST /jobs refuses, in the same words."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.hub_server import stub_hub
from tests.models import save_tiny
from tests.quantized_models import store_fp8_blocks


@pytest.fixture
def hub():
    with stub_hub() as running:
        yield running


@pytest.fixture
def hub_endpoint(hub):
    return hub.url


def both(api, model, recipe, **more):
    body = {"model": model, "recipe": recipe} | more
    headers = api.headers(scopes=("jobs:read", "jobs:write"))
    return [api.client.post(path, json=body, headers=headers) for path in ("/estimates", "/jobs")]


PORTABLE = {"extends": "portable-4", "stages": [
    {"type": "quantize", "bits": 4, "group_size": 56, "embedding": False},
]}  # fmt: skip
REFUSED = {
    "a target out of reach": ("llama", {"extends": "small", "target": {"bytes_ratio": 0.02}}, "takes about"),
    "groups that do not divide": ("llama", PORTABLE, "groups of 56 do not divide"),
    "heads that cannot go": (
        "opt",
        {"stages": [{"type": "prune-heads"}], "calibration": {"form": "windows"}},
        "fix the number of heads",
    ),
    "a portable form of transposed matrices": ("gpt2", "portable-8", "transposed"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_recipe_that_does_not_fit_the_model_is_refused_at_both_doors(api, hub, tmp_path, name):
    family, recipe, words = REFUSED[name]
    hub.add_model("org/tiny", save_tiny(tmp_path / "tiny", family, torch.bfloat16))
    estimated, submitted = both(api, {"repo_id": "org/tiny"}, recipe)
    assert estimated.status_code == submitted.status_code == 422, submitted.text
    assert words in submitted.json()["detail"]
    assert (estimated.json()["code"], estimated.json()["detail"]) == (
        submitted.json()["code"],
        submitted.json()["detail"],
    )


def test_a_model_that_cannot_be_compressed_is_refused_at_both_doors(api, hub, tiny_llama):
    commit = hub.add_model("org/tiny", tiny_llama)
    config = json.loads(commit.files["config.json"])
    commit.files["config.json"] = json.dumps(config | {"architectures": ["LlamaModel"]}).encode()
    answers = both(api, {"repo_id": "org/tiny"}, "int8")
    assert {answer.json()["code"] for answer in answers} == {"unsupported_architecture"}


def test_a_layer_that_lacks_a_matrix_is_found_before_the_job(api, hub, tmp_path):
    folder = save_tiny(tmp_path / "tiny", "llama-untied", torch.bfloat16)
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.2.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    hub.add_model("org/tiny", folder)
    assert [answer.status_code for answer in both(api, {"repo_id": "org/tiny"}, "int8")] == [
        422,
        422,
    ]


def test_a_hub_that_does_not_answer_keeps_no_job_out(api, hub):
    hub.fail_next("/api/models/", 503)
    _, submitted = both(api, {"repo_id": "org/unknown"}, "int8")
    assert submitted.status_code == 202


def test_what_only_the_workers_token_may_read_is_the_workers_business(api, hub, tiny_llama):
    hub.add_model("org/gated", tiny_llama, gated=True)
    estimated, submitted = both(api, {"repo_id": "org/gated"}, "int8")
    assert estimated.json()["code"] == "gated_model"
    assert submitted.status_code == 202


def test_a_model_is_looked_at_once_a_minute(api, hub, tiny_llama):
    hub.add_model("org/tiny", tiny_llama)
    both(api, {"repo_id": "org/tiny"}, "int8")
    sent = hub.sent_bytes
    both(api, {"repo_id": "org/tiny"}, "balanced")
    assert hub.sent_bytes == sent


def test_links_out_of_a_model_folder_are_refused_before_the_job(api, tiny_llama, tmp_path):
    secret = tmp_path / "elsewhere.json"
    tokenizer = tiny_llama / "tokenizer.json"
    shutil.move(tokenizer, secret)
    tokenizer.symlink_to(secret)
    try:
        for answer in both(api, {"path": tiny_llama.name}, "int8"):
            assert answer.json()["code"] == "unsafe_link"
            assert "tokenizer.json" in answer.json()["detail"]
    finally:
        tokenizer.unlink()
        shutil.move(secret, tokenizer)


@pytest.fixture
def quantized(api, tiny_llama):
    folder = save_tiny(tiny_llama.parent / "quantized", dtype=torch.bfloat16)
    store_fp8_blocks(folder)
    yield folder
    shutil.rmtree(folder)


def test_what_is_quantized_already_is_taken_where_that_is_allowed(api, quantized):
    for answer in both(api, {"path": "quantized"}, "balanced"):
        assert (answer.status_code, answer.json()["code"]) == (422, "already_quantized")
        assert "allow_requantize" in answer.json()["detail"]
    estimated, submitted = both(api, {"path": "quantized", "allow_requantize": True}, "balanced")
    assert (estimated.status_code, submitted.status_code) == (200, 202)
    widened = estimated.json()["source_bytes"]
    assert widened > 1.5 * (quantized / "model.safetensors").stat().st_size
    shown = api.client.get(submitted.headers["location"], headers=api.headers()).json()
    assert shown["request"]["model"]["allow_requantize"] is True


def test_the_model_in_a_subfolder(api, tiny_llama):
    inner = tiny_llama.parent / "many" / "inner"
    shutil.copytree(tiny_llama, inner)
    estimated, submitted = both(api, {"path": "many", "subfolder": "inner"}, "int8")
    assert (estimated.status_code, submitted.status_code) == (200, 202)
    missing = both(api, {"path": "many", "subfolder": "outer"}, "int8")
    assert {answer.status_code for answer in missing} == {422}
    for odd in ("../inner", "/etc", "a//b", "a/"):
        assert {
            one.status_code for one in both(api, {"path": "many", "subfolder": odd}, "int8")
        } == {422}
    shutil.rmtree(inner.parent)


def test_a_gguf_file_has_no_estimate_before_it_is_read(api, tiny_llama):
    folder = tiny_llama.parent / "gguf"
    folder.mkdir()
    (folder / "a.gguf").write_bytes(b"GGUF")
    estimated, submitted = both(api, {"path": "gguf", "file": "a.gguf"}, "int8")
    assert (estimated.status_code, submitted.status_code) == (422, 202)
    assert "only when it is read whole" in estimated.json()["detail"]
    shutil.rmtree(folder)
