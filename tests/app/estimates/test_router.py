import json
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from app.estimates.service import MAX_CONCURRENT
from tests.hub_server import stub_hub
from tests.models import save_tiny


@pytest.fixture
def hub():
    with stub_hub() as running:
        yield running


@pytest.fixture
def hub_endpoint(hub):
    return hub.url


def ask(api, **changes):
    body = {"model": {"repo_id": "org/tiny"}, "recipe": "int8"} | changes
    return api.client.post("/estimates", json=body, headers=api.headers(scopes=("jobs:read",)))


def test_a_hub_model_is_estimated_from_its_headers(api, hub, tmp_path):
    folder = save_tiny(tmp_path / "tiny", hidden=768, vocabulary=20_000)
    commit = hub.add_model("org/tiny", folder)
    answer = ask(api)
    assert answer.status_code == 200, answer.text
    document = answer.json()
    weights = (folder / "model.safetensors").stat().st_size
    assert document["source_bytes"] == weights
    assert document["revision"] == commit.oid
    # float32 to one byte a weight
    assert 0.24 < document["artifact_bytes"]["expected"] / weights < 0.27
    assert document["gpu_bytes"] is None
    assert hub.sent_bytes < 0.01 * weights


def test_the_body_of_a_job_is_taken_as_it_is(api, hub, tiny_llama):
    hub.add_model("org/tiny", tiny_llama)
    assert ask(api, output={"repo_id": "me/small"}, labels={"team": "a"}).status_code == 200
    assert ask(api, outptu={}).status_code == 422


def test_a_local_folder_gives_what_the_hub_gives(api, hub, tiny_llama):
    hub.add_model("org/tiny", tiny_llama)
    remote, local = ask(api).json(), ask(api, model={"path": tiny_llama.name}).json()
    same = ("artifact_bytes", "peak_bytes", "scratch_bytes", "seconds", "resident_bytes")
    assert {key: remote[key] for key in same} == {key: local[key] for key in same}


def test_what_could_not_be_a_job_is_refused_in_the_same_words(api, hub, tmp_path):
    folder = tmp_path / "pickled"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "pytorch_model.bin").write_bytes(b"x")
    hub.add_model("org/pickled", folder)
    refused = [
        ("model_not_found", ask(api, model={"repo_id": "org/nothing"})),
        ("unsafe_format", ask(api, model={"repo_id": "org/pickled"})),
        ("model_not_found", ask(api, model={"path": "elsewhere"})),
        ("invalid_recipe", ask(api, recipe="best")),
    ]
    assert [answer.json()["code"] for _, answer in refused] == [code for code, _ in refused]
    assert {answer.status_code for _, answer in refused} == {422}


def header(**tensors):
    raw = json.dumps(tensors).encode()
    return len(raw).to_bytes(8, "little") + raw


def entry(*shape):
    return {"dtype": "F32", "shape": list(shape), "data_offsets": [0, 0]}


@pytest.mark.parametrize(
    "damage",
    [
        b"\xff" * 64,
        (2).to_bytes(8, "little") + b"[]",
        b"",
        (200_000).to_bytes(8, "little") + b"[" * 200_000,
        header(a=7),
        header(a={"dtype": ["F32"], "shape": "1"}),
        header(norm=entry(*[2**48 - 1] * 100_000)),
        header(norm=entry(*[2**48 - 1] * 3)),
    ],
    ids=["noise", "list", "empty", "deep", "number", "types", "axes", "huge"],
)
def test_broken_headers_are_an_answer_and_no_crash(api, hub, tmp_path, tiny_llama, damage):
    folder = tmp_path / "broken"
    shutil.copytree(tiny_llama, folder)
    (folder / "model.safetensors").write_bytes(damage)
    hub.add_model("org/broken", folder)
    answer = ask(api, model={"repo_id": "org/broken"})
    assert answer.status_code == 422
    assert "model.safetensors" in answer.json()["detail"]


@pytest.mark.parametrize("damage", ["hole", "count", "nothing wide", "no head"])
def test_models_that_cannot_be_are_not_estimated(api, hub, tmp_path, tiny_llama, damage):
    folder = tmp_path / "odd"
    shutil.copytree(tiny_llama, folder)
    config = json.loads((folder / "config.json").read_text())
    tensors = load_file(folder / "model.safetensors")
    if damage == "hole":
        tensors = {name.replace("layers.1.", "layers.7."): one for name, one in tensors.items()}
    elif damage == "count":
        config["num_hidden_layers"] = 30
    elif damage == "nothing wide":
        tensors["model.embed_tokens.weight"] = torch.zeros(300, 0)
    else:
        config["tie_word_embeddings"] = False
        tensors.pop("lm_head.weight", None)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")
    hub.add_model("org/odd", folder)
    answer = ask(api, model={"repo_id": "org/odd"}, recipe="gptq-4")
    assert (answer.status_code, answer.json()["code"]) == (422, "unsupported_architecture")


def test_a_target_out_of_reach_is_no_estimate(api, hub, tiny_llama):
    hub.add_model("org/tiny", tiny_llama)
    answer = ask(api, recipe={"extends": "balanced", "target": {"bytes_ratio": 1e-300}})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_recipe")


def test_a_hub_that_does_not_answer_is_said_so(api, hub):
    hub.faults += [("/api/models", 503)] * 20
    answer = ask(api)
    assert answer.status_code == 503
    assert answer.json()["code"] == "hub_unavailable"
    assert answer.headers["retry-after"]


def test_only_so_many_at_once(api, hub, tiny_llama):
    hub.add_model("org/tiny", tiny_llama)
    places = api.client.app.state.feasibility.places
    taken = [places.acquire(blocking=False) for _ in range(MAX_CONCURRENT)]
    assert all(taken)
    answer = ask(api)
    assert (answer.status_code, answer.json()["code"]) == (429, "too_many_requests")
    places.release(MAX_CONCURRENT)
    assert [ask(api).status_code for _ in range(MAX_CONCURRENT + 1)] == [200] * (MAX_CONCURRENT + 1)


def test_a_key_is_needed(api):
    assert api.client.post("/estimates", json={"model": {"repo_id": "a/b"}}).status_code == 401


def test_estimating_loads_no_torch(tiny_llama):
    program = (
        "import sys; from worker.cli import main; sys.argv[1:] = sys.argv[1:]\n"
        "try: main()\nfinally: assert 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "estimate", str(tiny_llama), "--json"],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert '"artifact_bytes"' in done.stdout


def test_a_config_without_end_is_cut_off(api, hub, tiny_llama):
    """Whatever size is listed: this process has neither the disk nor the time."""
    hub.add_model("org/tiny", tiny_llama)
    hub.endless.add("config.json")
    answer = ask(api)
    assert answer.status_code == 422
    assert answer.json()["code"] == "unsafe_config"
    assert hub.sent_bytes < 64 << 20
