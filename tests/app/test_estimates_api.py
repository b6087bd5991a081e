import shutil
import subprocess
import sys

import pytest

from app.estimates import AT_ONCE
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


@pytest.mark.parametrize("damage", [b"\xff" * 64, (2).to_bytes(8, "little") + b"[]", b""])
def test_broken_headers_are_an_answer_and_no_crash(api, hub, tmp_path, tiny_llama, damage):
    folder = tmp_path / "broken"
    shutil.copytree(tiny_llama, folder)
    (folder / "model.safetensors").write_bytes(damage)
    hub.add_model("org/broken", folder)
    answer = ask(api, model={"repo_id": "org/broken"})
    assert answer.status_code == 422
    assert "model.safetensors" in answer.json()["detail"]


def test_a_hub_that_does_not_answer_is_said_so(api, hub):
    hub.faults += [("/api/models", 503)] * 20
    answer = ask(api)
    assert answer.status_code == 503
    assert answer.json()["code"] == "hub_unavailable"
    assert answer.headers["retry-after"]


def test_only_so_many_at_once(api, hub, tiny_llama):
    hub.add_model("org/tiny", tiny_llama)
    places = api.client.app.state.estimates
    taken = [places.acquire(blocking=False) for _ in range(AT_ONCE)]
    assert all(taken)
    answer = ask(api)
    assert (answer.status_code, answer.json()["code"]) == (429, "too_many_requests")
    places.release(AT_ONCE)
    assert [ask(api).status_code for _ in range(AT_ONCE + 1)] == [200] * (AT_ONCE + 1)


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
