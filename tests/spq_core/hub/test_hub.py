"""The real huggingface_hub client against a stand-in server over HTTP."""

import io
import json

import pyarrow as pa
import pytest
import torch
from pyarrow import parquet
from safetensors.torch import load, save

from spq_core.data.tasks import find_task, read_rows
from spq_core.data.texts import find_text
from spq_core.errors import DatasetError, UnsafeModelError, UnsupportedModelError
from spq_core.estimate.estimate import folder_shapes, headers_shapes
from spq_core.evaluation.tasks.definitions import find_definition, settings_of
from spq_core.hub.client import hub_api
from spq_core.hub.datasets import fetch_text
from spq_core.hub.errors import HubError, HubUnavailableError
from spq_core.hub.fetch import FetchLimits, fetch_model
from spq_core.hub.headers import fetch_headers
from spq_core.hub.own_token import own_hub, own_token
from spq_core.hub.publish import Publisher
from spq_core.hub.task_data import fetch_task
from spq_core.hub.tasks import HUB_TASKS
from spq_core.models.reading import Reading
from tests.hub_server import READ_TOKEN, WRITE_TOKEN, Repo, stub_hub
from tests.models import save_tiny
from tests.quantized_models import store_fp8_blocks

LIMITS = FetchLimits()


@pytest.fixture
def hub():
    with stub_hub() as running:
        yield running


def fetch(hub, name, tmp_path, token=WRITE_TOKEN, revision="main", limits=LIMITS):
    return fetch_model(hub_api(hub.url, token), name, revision, tmp_path / "got", limits=limits)


def test_fetches_one_commit_and_only_safe_files(hub, tiny_llama, tmp_path):
    first = hub.add_model("org/tiny", tiny_llama)
    files = dict(first.files) | {
        "evil.py": b"open('canary', 'w')",
        "pytorch_model.bin": b"x",
        "notes.txt": b"n",
    }
    hub.models["org/tiny"].add(files, "second")
    got = fetch(hub, "org/tiny", tmp_path)
    assert got.commit == hub.models["org/tiny"].commits[-1].oid
    assert got.license == "apache-2.0"
    names = {path.name for path in got.folder.iterdir()}
    assert names == {path.name for path in tiny_llama.iterdir()}
    assert (got.folder / "model.safetensors").read_bytes() == (
        tiny_llama / "model.safetensors"
    ).read_bytes()
    assert hub.downloaded()[0] == "config.json"


def test_a_named_revision_is_used(hub, tiny_llama, tmp_path):
    first = hub.add_model("org/tiny", tiny_llama)
    hub.models["org/tiny"].add({}, "emptied")
    assert fetch(hub, "org/tiny", tmp_path, revision=first.oid).commit == first.oid
    with pytest.raises(HubError, match="no such revision"):
        fetch(hub, "org/tiny", tmp_path, revision="v9")


def changed(hub, tiny_llama, name, **changes):
    commit = hub.add_model(name, tiny_llama)
    config = json.loads(commit.files["config.json"]) | changes
    commit.files["config.json"] = json.dumps(config).encode()
    return commit


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"model_type": "t5"}, UnsupportedModelError, "t5.*encoder-decoder"),
        ({"quantization_config": {"quant_method": "awq"}}, UnsafeModelError, "quantized"),
        ({"model_type": "odd", "auto_map": {"AutoConfig": "x.Y"}}, UnsafeModelError, "auto_map"),
        (
            {"architectures": ["LlamaForSequenceClassification"]},
            UnsupportedModelError,
            "not a causal",
        ),
    ],
)
def test_unsuitable_models_cost_no_weights(hub, tiny_llama, tmp_path, changes, error, words):
    changed(hub, tiny_llama, "org/odd", **changes)
    with pytest.raises(error, match=words):
        fetch(hub, "org/odd", tmp_path)
    assert hub.downloaded() == ["config.json"]


def test_pickled_weights_are_refused_before_any_download(hub, tiny_llama, tmp_path):
    commit = hub.add_model("org/pickle", tiny_llama)
    commit.files["pytorch_model.bin"] = commit.files.pop("model.safetensors")
    with pytest.raises(UnsafeModelError, match="pytorch_model.bin, which can run code"):
        fetch(hub, "org/pickle", tmp_path)
    assert hub.downloaded() == []


def test_errors_of_the_hub_in_our_words(hub, tiny_llama, tmp_path):
    hub.add_model("org/gated", tiny_llama, gated=True)
    hub.add_model("org/private", tiny_llama, private=True)
    with pytest.raises(HubError, match="is gated") as gated:
        fetch(hub, "org/gated", tmp_path, READ_TOKEN)
    assert gated.value.code == "gated_model"
    with pytest.raises(HubError, match="does not exist, or the token may not see it"):
        fetch(hub, "org/private", tmp_path, READ_TOKEN)
    with pytest.raises(HubError, match="not a repository id"):
        fetch(hub, "../../etc", tmp_path)
    hub.fail_next("/api/models/", 503)
    with pytest.raises(HubUnavailableError, match="503"):
        fetch(hub, "org/gated", tmp_path)
    with pytest.raises(HubUnavailableError, match="cannot be reached"):
        fetch_model(
            hub_api("http://127.0.0.1:9", None), "a/b", "main", tmp_path / "x", limits=LIMITS
        )


def test_too_large_is_refused_from_the_listing(hub, tiny_llama, tmp_path):
    hub.add_model("org/tiny", tiny_llama)
    with pytest.raises(HubError, match="takes up to 1000") as caught:
        fetch(hub, "org/tiny", tmp_path, limits=FetchLimits(max_bytes=1000))
    assert caught.value.code == "too_large_for_worker"
    assert hub.downloaded() == []


def test_publishing_is_one_commit_with_a_trailer_and_is_found_again(hub, tmp_path):
    folder = tmp_path / "artifact"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights" * 1000)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# hi\n")
    publisher = Publisher(hub_api(hub.url, WRITE_TOKEN), "me/out", "job_1")
    assert publisher.existing() is None
    prepared = publisher.upload(folder, private=True)
    assert len(hub.models["me/out"].commits) == 1, "nothing is visible before the commit"
    made = publisher.commit(prepared, "Compress it")
    repo = hub.models["me/out"]
    assert repo.private
    assert len(repo.commits) == 2
    assert repo.commits[-1].files["model.safetensors"] == b"weights" * 1000
    assert repo.commits[-1].description.strip() == "Spq-Job-Id: job_1"
    assert publisher.existing() == made
    assert Publisher(hub_api(hub.url, WRITE_TOKEN), "me/out", "job_2").existing() is None


def artifact(tmp_path, name, **files):
    folder = tmp_path / name
    folder.mkdir()
    for file, text in ({"compression_manifest.json": "{}"} | files).items():
        (folder / file).write_text(text)
    return folder


def test_a_repository_with_another_model_is_not_written_to(hub, tiny_llama, tmp_path):
    hub.add_model("me/model", tiny_llama, private=True)
    publisher = Publisher(hub_api(hub.url, WRITE_TOKEN), "me/model", "job_1")
    with pytest.raises(HubError, match="no artifact of this service") as caught:
        publisher.upload(artifact(tmp_path, "a"), private=True)
    assert caught.value.code == "output_not_empty"
    assert len(hub.models["me/model"].commits) == 1


def test_an_earlier_artifact_is_replaced_without_leftovers(hub, tmp_path):
    first = Publisher(hub_api(hub.url, WRITE_TOKEN), "me/out", "job_1")
    first.commit(
        first.upload(
            artifact(tmp_path, "a", **{"old.safetensors": "x", "config.json": "1"}), private=True
        ),
        "one",
    )
    second = Publisher(hub_api(hub.url, WRITE_TOKEN), "me/out", "job_2")
    second.commit(
        second.upload(artifact(tmp_path, "b", **{"config.json": "2"}), private=True), "two"
    )
    assert set(hub.models["me/out"].commits[-1].files) == {
        ".gitattributes",
        "compression_manifest.json",
        "config.json",
    }


def test_a_private_artifact_does_not_go_into_a_public_repository(hub, tmp_path):
    hub.models["me/open"] = Repo(private=False)
    hub.models["me/open"].add({}, "initial")
    publisher = Publisher(hub_api(hub.url, WRITE_TOKEN), "me/open", "job_1")
    with pytest.raises(HubError, match="is public"):
        publisher.upload(artifact(tmp_path, "a"), private=True)
    publisher.commit(publisher.upload(tmp_path / "a", private=False), "fine")


def test_a_repository_changed_meanwhile_is_not_overwritten(hub, tmp_path):
    folder = tmp_path / "artifact"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    publisher = Publisher(hub_api(hub.url, WRITE_TOKEN), "me/out", "job_1")
    prepared = publisher.upload(folder, private=True)
    hub.models["me/out"].add({"theirs": b"1"}, "somebody else")
    with pytest.raises(HubError, match="412"):
        publisher.commit(prepared, "Compress it")
    assert "config.json" not in hub.models["me/out"].commits[-1].files


def test_a_token_that_may_not_write_is_told_so(hub, tmp_path):
    publisher = Publisher(hub_api(hub.url, READ_TOKEN), "me/out", "job_1")
    with pytest.raises(HubError, match="the token may not do this") as caught:
        publisher.upload(tmp_path, private=True)
    assert READ_TOKEN not in str(caught.value)


def test_wikitext_from_the_hub_equals_the_raw_file(hub, tmp_path):
    rows = ["", " = Title = \n", "", " Some text . \n"]
    buffer = io.BytesIO()
    parquet.write_table(pa.table({"text": rows}), buffer)
    names = ("test", "validation")
    files = {
        f"wikitext-2-raw-v1/{name}-00000-of-00001.parquet": buffer.getvalue() for name in names
    }
    hub.datasets["Salesforce/wikitext"] = Repo()
    hub.datasets["Salesforce/wikitext"].add(files, "data")
    fetch_text(hub_api(hub.url, None), "wikitext2", tmp_path)
    assert (tmp_path / "wikitext2-test.txt").read_text() == " \n = Title = \n \n Some text . \n"
    assert (tmp_path / "wikitext2-valid.txt").exists()
    with pytest.raises(DatasetError, match="unknown dataset 'pile'"):
        fetch_text(hub_api(hub.url, None), "pile", tmp_path)


ROWS = [{"question": "1 + 1?", "answer": "#### 2"}, {"question": "2 + 1?", "answer": "#### 3"}]


def converted(hub, repo, folder, rows=ROWS):
    """A dataset on the branch that the Hub converts it on."""
    files = {}
    for split, part in (("test", 0), ("test", 1), ("train", 0)):
        buffer = io.BytesIO()
        parquet.write_table(pa.Table.from_pylist(rows), buffer)
        files[f"{folder}/{split}/{part:04d}.parquet"] = buffer.getvalue()
    hub.datasets[repo] = Repo()
    return hub.datasets[repo].add(files, "convert")


def test_questions_of_a_task_are_fetched_at_one_commit(hub, tmp_path):
    commit = converted(hub, "openai/gsm8k", "main")
    origin = fetch_task(hub_api(hub.url, None), "gsm8k", tmp_path)
    assert origin == f"openai/gsm8k@{commit.oid}"
    data = find_task("gsm8k", [tmp_path])
    assert read_rows(data.questions) == [*ROWS, *ROWS]
    assert read_rows(data.examples) == ROWS
    asked = [path for _, path in hub.requests if "/resolve/" in path]
    assert asked
    assert all(commit.oid in path for path in asked), "not what the branch is by then"


def test_questions_as_a_text_calibrate_on_their_examples(hub, tmp_path):
    converted(hub, "openai/gsm8k", "main")
    fetch_text(hub_api(hub.url, None), "gsm8k", tmp_path)
    found = find_text("gsm8k", tmp_path)
    assert (
        found.calibration == "Question: 1 + 1?\nAnswer: #### 2\n\nQuestion: 2 + 1?\nAnswer: #### 3"
    )
    assert found.evaluation == f"{found.calibration}\n\n{found.calibration}"


def test_questions_that_cannot_be_had_are_said_to(hub, tmp_path):
    api = hub_api(hub.url, None)
    with pytest.raises(DatasetError, match="not known to be on the Hub"):
        fetch_task(api, "my_quiz", tmp_path)
    with pytest.raises(HubError, match="openai/gsm8k does not exist"):
        fetch_task(api, "gsm8k", tmp_path)
    converted(hub, "openai/gsm8k", "socratic")
    with pytest.raises(DatasetError, match=r"has no main/test/\*\.parquet"):
        fetch_task(api, "gsm8k", tmp_path)


def test_the_table_of_tasks_is_that_of_the_harness():
    """Where both say something, they say the same."""
    for name, task in HUB_TASKS.items():
        known = {"truthfulqa": "truthfulqa_mc1", "mmlu": "mmlu_anatomy"}.get(name, name)
        found = find_definition(known)
        document = settings_of(found)
        assert document["dataset_path"] == task.repo
        assert found.split == task.questions
        if name != "mmlu":
            assert (document.get("dataset_name") or "default") == task.configuration
        if task.examples is not None:
            assert found.examples == task.examples


def sharded(hub, tiny_llama, name, shards):
    """A repository whose shards have names of their own."""
    commit = hub.add_model(name, tiny_llama)
    tensors = load(commit.files.pop("model.safetensors"))
    weight_map = {key: shards[number % len(shards)] for number, key in enumerate(sorted(tensors))}
    for shard in shards:
        own = {key: part for key, part in tensors.items() if weight_map[key] == shard}
        commit.files[shard] = save(own, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": weight_map}
    commit.files["model.safetensors.index.json"] = json.dumps(index).encode()
    return commit


SHARDS = ("model.safetensors-00001-of-00002.safetensors", "weights_b.safetensors")


def test_the_index_decides_which_files_are_weights(hub, tiny_llama, tmp_path):
    sharded(hub, tiny_llama, "org/odd", SHARDS)
    got = fetch(hub, "org/odd", tmp_path)
    assert set(SHARDS) <= {path.name for path in got.folder.iterdir()}
    headers = fetch_headers(hub_api(hub.url, WRITE_TOKEN), "org/odd", "main")
    local = folder_shapes(got.folder)
    assert headers_shapes(headers).elements == local.elements
    assert headers.source_bytes == local.source_bytes


def test_a_single_file_comes_before_an_index_as_it_does_for_transformers(hub, tiny_llama, tmp_path):
    whole = dict(hub.add_model("org/whole", tiny_llama).files)
    commit = sharded(hub, tiny_llama, "org/both", SHARDS)
    commit.files["model.safetensors"] = whole["model.safetensors"]
    names = {path.name for path in fetch(hub, "org/both", tmp_path).folder.iterdir()}
    assert "model.safetensors" in names
    assert not set(SHARDS) & names


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("missing.safetensors", "does not have"),
        ("../x.safetensors", "not a file"),
        ("x.bin", "not a file"),
    ],
)
def test_an_index_that_names_what_is_not_there_costs_no_weights(
    hub, tiny_llama, tmp_path, target, words
):
    commit = sharded(hub, tiny_llama, "org/odd", SHARDS)
    index = json.dumps({"weight_map": {"a": target}}).encode()
    commit.files["model.safetensors.index.json"] = index
    with pytest.raises(UnsafeModelError, match=words):
        fetch(hub, "org/odd", tmp_path)
    assert not set(SHARDS) & set(hub.downloaded())


def test_templates_and_terms_are_fetched(hub, tiny_llama, tmp_path):
    commit = hub.add_model("org/tiny", tiny_llama)
    more = {"additional_chat_templates/tool_use.jinja", "NOTICE", "USE_POLICY.md"}
    commit.files |= dict.fromkeys(more, b"x")
    folder = fetch(hub, "org/tiny", tmp_path).folder
    assert all((folder / name).is_file() for name in more)


OTHERS = {
    "an adapter": (
        {"adapter_config.json": b'{"base_model_name_or_path": "org/base"}', "adapter_model.safetensors": b"x"},
        r"adapter.*'org/base'",
    ),
    "GGUF files": ({"a.Q4_K_M.gguf": b"x"}, r"GGUF files \(a\.Q4_K_M\.gguf\)"),
    "a subfolder": ({"inner/config.json": b"{}"}, "subfolders inner do"),
    "nothing": ({"README.md": b"x"}, "not a transformers model"),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_repositories_of_another_kind_say_what_to_name_instead(hub, tiny_llama, tmp_path, name):
    files, words = OTHERS[name]
    commit = hub.add_model("org/other", tiny_llama)
    commit.files.clear()
    commit.files |= files
    with pytest.raises(UnsafeModelError, match=words):
        fetch(hub, "org/other", tmp_path)


TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "SPQ_HUB_TOKEN")


@pytest.fixture
def no_tokens(monkeypatch, tmp_path):
    for name in TOKENS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    return monkeypatch


def test_a_command_line_uses_the_first_token_there_is_and_names_where_it_is_from(
    no_tokens, tmp_path
):
    assert own_token() == (None, "")
    no_tokens.setenv("SPQ_HUB_TOKEN", "hf_ours")
    assert own_token() == ("hf_ours", "SPQ_HUB_TOKEN")
    (tmp_path / "token").write_text("hf_stored")
    assert own_token() == ("hf_stored", "the stored login")
    no_tokens.setenv("HF_TOKEN", "hf_named")
    assert own_token() == ("hf_named", "HF_TOKEN")


def test_a_refusal_names_the_origin_of_the_token_and_never_the_token(no_tokens):
    with pytest.raises(HubError, match=r"is gated.*no token was found: set HF_TOKEN"), own_hub():
        raise HubError("gated_model", "org/gated is gated")
    no_tokens.setenv("HF_TOKEN", "hf_secret")
    with pytest.raises(HubError, match="the token of HF_TOKEN was used") as refused, own_hub():
        raise HubError("gated_model", "org/gated is gated")
    assert "hf_secret" not in str(refused.value)


def test_a_subfolder_is_the_model(hub, tiny_llama, tmp_path):
    top = hub.add_model("org/top", tiny_llama)
    inner = {f"onnx/plain/{name}": content for name, content in top.files.items()}
    hub.models.setdefault("org/many", Repo()).add(
        inner | {"onnx/other.safetensors": b"x"}, "initial"
    )
    reading = Reading(subfolder="onnx/plain")
    api = hub_api(hub.url, WRITE_TOKEN)
    got = fetch_model(api, "org/many", "main", tmp_path / "got", limits=LIMITS, reading=reading)
    assert got.folder == tmp_path / "got" / "onnx" / "plain"
    assert {path.name for path in got.folder.iterdir()} == {
        path.name for path in tiny_llama.iterdir()
    }
    headers = fetch_headers(api, "org/many", "main", reading)
    assert headers_shapes(headers).elements == folder_shapes(tiny_llama).elements
    assert headers.source_bytes == folder_shapes(tiny_llama).source_bytes
    with pytest.raises(
        UnsafeModelError, match="org/many has no config.json, but its subfolders onnx/plain do"
    ):
        fetch(hub, "org/many", tmp_path)
    with pytest.raises(UnsafeModelError, match="has no folder 'onnx/'"):
        fetch_headers(api, "org/top", "main", Reading(subfolder="onnx"))


def test_one_gguf_file_is_the_model(hub, tmp_path):
    files = {
        "a.Q4_0.gguf": b"GGUF a",
        "a.Q8_0.gguf": b"GGUF b",
        "LICENSE": b"terms",
        "README.md": b"#",
    }
    hub.models.setdefault("org/gguf", Repo()).add(files, "initial")
    api = hub_api(hub.url, WRITE_TOKEN)
    got = fetch_model(
        api, "org/gguf", "main", tmp_path / "got", limits=LIMITS, reading=Reading(file="a.Q8_0.gguf")
    )  # fmt: skip
    assert {path.name for path in got.folder.iterdir()} == {"a.Q8_0.gguf", "LICENSE"}
    with pytest.raises(
        UnsafeModelError, match=r"no file 'b\.gguf'; it has a\.Q4_0\.gguf, a\.Q8_0\.gguf"
    ):
        fetch_model(
            api,
            "org/gguf",
            "main",
            tmp_path / "none",
            limits=LIMITS,
            reading=Reading(file="b.gguf"),
        )
    with pytest.raises(
        UnsupportedModelError, match="GGUF file tells its shapes only when it is read"
    ):
        fetch_headers(api, "org/gguf", "main", Reading(file="a.Q8_0.gguf"))
    with pytest.raises(
        UnsafeModelError, match=r"name the original model.*model\.file.*allow_requantize"
    ):
        fetch(hub, "org/gguf", tmp_path)


def test_quantized_weights_have_the_headers_of_what_they_are_widened_to(hub, tmp_path):
    folder = save_tiny(tmp_path / "tiny", dtype=torch.bfloat16)
    plain = folder_shapes(folder)
    store_fp8_blocks(folder)
    hub.add_model("org/fp8", folder)
    api, allowed = hub_api(hub.url, WRITE_TOKEN), Reading(allow_requantize=True)
    headers = fetch_headers(api, "org/fp8", "main", allowed)
    assert headers_shapes(headers).layers == plain.layers
    assert headers.source_bytes == pytest.approx(plain.source_bytes, rel=0.01)
    assert fetch_model(
        api, "org/fp8", "main", tmp_path / "got", limits=LIMITS, reading=allowed
    ).folder
    with pytest.raises(UnsafeModelError, match=r"quantized already \(fp8\)"):
        fetch_headers(api, "org/fp8", "main")
    with pytest.raises(UnsafeModelError, match=r"quantized already \(fp8\)"):
        fetch(hub, "org/fp8", tmp_path)
