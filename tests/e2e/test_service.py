"""Jobs through every real part: HTTP, Postgres, Valkey, Celery, child programs, the Hub's protocol."""

import itertools
import re
import subprocess
import sys

import pytest
import torch
from gguf import GGMLQuantizationType
from transformers import AutoModelForCausalLM

from spq_core.artifact.manifest import read_manifest, verify_files
from tests.e2e.bodies import PAPER
from tests.e2e.conftest import wait_until
from tests.gguf_models import write_gguf
from tests.hub_server import WRITE_TOKEN, Repo
from tests.models import VOCABULARY, save_tiny, some_ids
from tests.spq_core.hub.test_hub import converted


def test_a_job_from_the_hub_to_the_hub(stack, tmp_path):
    job_id = stack.submit(recipe=PAPER, output={"repo_id": "me/tiny-spq", "private": True})
    job = stack.finish(job_id)
    assert job["status"] == "succeeded", job
    source = stack.hub.models["org/tiny"].commits[-1]
    assert job["source_commit"] == source.oid
    assert [row["name"] for row in job["result"]["rows"]] == ["source", "int8", "result"]

    expected, measured = job["result"]["estimate"], job["result"]["measured"]
    size = expected["artifact_bytes"]
    assert 0.9 * size["low"] <= measured["artifact_bytes"] <= 1.1 * size["high"]
    assert measured["peak_bytes"] > measured["resident_bytes"] > 0
    assert measured["seconds"] > job["result"]["compression"]["seconds"] > 0

    published = stack.hub.models["me/tiny-spq"]
    assert published.private
    assert len(published.commits) == 2
    commit = published.commits[-1]
    assert job["result"]["published"]["commit"] == commit.oid
    assert f"Spq-Job-Id: {job_id}" in commit.description
    card = commit.files["README.md"].decode()
    for line in (
        "base_model: org/tiny",
        "base_model_relation: quantized",
        "license: apache-2.0",
        "model-index:",
    ):
        assert line in card

    folder = tmp_path / "downloaded"
    folder.mkdir()
    for name, content in commit.files.items():
        (folder / name).write_bytes(content)
    manifest = read_manifest(folder)
    verify_files(folder, manifest)
    assert manifest.source.name == "org/tiny"
    assert manifest.source.revision == source.oid
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model(some_ids()).logits.isfinite().all()
    snippet = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1].replace(
        "path/or/repo", str(folder)
    )
    subprocess.run([sys.executable, "-c", snippet], check=True, cwd=tmp_path)

    metrics = {
        (one["model"], one["name"]): one["value"]
        for one in stack.client.call("GET", f"/jobs/{job_id}/metrics")["data"]
    }
    for name in (
        "bytes_on_disk",
        "resident_bytes",
        "perplexity",
        "tokens",
        "decode_tokens_per_second",
    ):
        assert all(metrics[model_name, name] > 0 for model_name in ("source", "int8", "result"))
    assert metrics["result", "kl"] > metrics["int8", "kl"] > 0
    assert metrics["result", "compression_peak_rss_bytes"] > 0
    layers = stack.client.call("GET", f"/jobs/{job_id}/layers")["data"]
    assert {one["stage"] for one in layers} == {"svd", "prune", "quantize"}
    events = stack.client.call("GET", f"/jobs/{job_id}/events", limit=1000)["data"]
    assert [one["seq"] for one in events] == list(range(1, len(events) + 1))
    files = {one["path"] for one in stack.client.call("GET", f"/jobs/{job_id}/artifacts")["data"]}
    assert files == set(commit.files) - {".gitattributes"}
    (worker,) = stack.client.call("GET", "/capabilities")["workers"]
    assert set(worker["isolation"]) <= {"calls", "files", "network", "tcp", "processes"}
    assert worker["versions"]["torch"]
    one_trace_from_the_request_to_the_stages(stack, job_id)
    wait_until(stack.nothing_left, 15, "scratch and processes gone")
    assert WRITE_TOKEN not in stack.everything_recorded()


def one_trace_from_the_request_to_the_stages(stack, job_id):
    wait_until(lambda: stack.traces.named("POST /jobs"), 10, "the API's spans")
    (request,) = stack.traces.named("POST /jobs")
    (attempt,) = stack.traces.named("attempt")
    assert {one.key: one.value.string_value for one in attempt.attributes}["spq.job_id"] == job_id
    stages = [span for span in stack.traces.spans if span.parent_span_id == attempt.span_id]
    assert {"load gate", "throughput", "publishing"} <= {span.name for span in stages}
    assert {span.trace_id for span in (attempt, *stages)} == {request.trace_id}
    for before, after in itertools.pairwise(
        sorted(stages, key=lambda span: span.start_time_unix_nano)
    ):
        assert before.end_time_unix_nano <= after.start_time_unix_nano + 10**6


def test_an_artifact_is_measured_again_without_being_made_again(stack, tmp_path):
    first = stack.finish(stack.submit(recipe=PAPER))
    evaluation = first["request"]["evaluation"] | {"limit": 1, "throughput": False}
    path = f"/jobs/{first['id']}/measure"
    accepted = stack.client.call("POST", path, {"evaluation": evaluation})
    assert accepted["request"]["measure_of"] == first["id"]
    job = stack.finish(accepted["id"])
    assert job["status"] == "succeeded", job
    one, two = first["result"], job["result"]
    assert two["rows"][-1]["windows"] == 1
    assert one["rows"][-1]["windows"] > 1
    assert two["compression"] == one["compression"], "the report is that of the first job"

    def files(job):
        listed = stack.client.call("GET", f"/jobs/{job['id']}/artifacts")["data"]
        return {one["path"]: one["sha256"] for one in listed}

    before, after = files(first), files(job)
    assert {name for name in before if before[name] != after[name]} == {"README.md"}
    stages = {
        one["data"].get("stage")
        for one in stack.client.call("GET", f"/jobs/{job['id']}/events", limit=1000)["data"]
    }
    assert not {stage for stage in stages if stage and stage.startswith(("svd", "quantize"))}
    layers = stack.client.call("GET", f"/jobs/{job['id']}/layers")["data"]
    assert {one["stage"] for one in layers} == {"svd", "prune", "quantize"}


@pytest.mark.extended
def test_questions_of_a_task_come_from_the_hub(stack):
    """The fetcher brings them; the run, which has no network, puts them."""
    rows = [
        {
            "question": f"{at}?",
            "choices": {"text": ["a", "b"], "label": ["A", "B"]},
            "answerKey": "A",
        }
        for at in range(4)
    ]
    commit = converted(stack.hub, "allenai/ai2_arc", "ARC-Easy", rows)
    converted(stack.hub, "openai/gsm8k", "main")
    few = {
        "perplexity": ["builtin"], "length": 64, "limit": 2, "throughput": False,
        "tasks": ["arc_easy", "gsm8k"], "task_limit": 2, "fewshot": 1, "int8_baseline": False,
    }  # fmt: skip
    job = stack.finish(stack.submit(evaluation=few))
    assert job["status"] == "succeeded", job
    row = job["result"]["rows"][-1]
    assert row["tasks"]["arc_easy"]["questions"] == 2
    assert list(row["tasks"]) == ["arc_easy"]
    assert "gsm8k" in job["result"]["evaluation"]["tasks_missing"]["gsm8k"], "no room for an answer"
    assert row["perplexity"], "a task that fails costs no other figure"
    lines = [line["text"] for line in stack.client.call("GET", f"/jobs/{job['id']}/logs")["data"]]
    assert f"questions of arc_easy are those of allenai/ai2_arc@{commit.oid}" in lines
    del stack.hub.datasets["openai/gsm8k"]
    lost = stack.finish(stack.submit(evaluation=few))
    assert (lost["status"], lost["error"]["code"]) == ("failed", "model_not_found"), lost


@pytest.mark.extended
def test_figures_of_the_source_are_measured_once_for_all_jobs(stack):
    first = stack.finish(stack.submit(recipe=PAPER))
    again = stack.finish(stack.submit(recipe="gptq-4"))
    rows = {row["name"]: row for row in again["result"]["rows"]}
    assert rows["source"]["origin"]["by"] == first["id"]
    assert rows["int8"]["perplexity"] == first["result"]["rows"][1]["perplexity"]
    assert "origin" not in rows["result"]
    assert rows["source"]["decode_tokens_per_second"], "speeds are always measured"


def test_a_quantized_gguf_file_in_a_folder_of_a_repository(stack, tmp_path):
    source = save_tiny(tmp_path / "tiny", dtype=torch.bfloat16, vocabulary=VOCABULARY + 1)
    write_gguf(source, tmp_path / "tiny.Q8_0.gguf", GGMLQuantizationType.Q8_0)
    content = (tmp_path / "tiny.Q8_0.gguf").read_bytes()
    files = {"files/tiny.Q8_0.gguf": content, "files/LICENSE": b"terms"}
    stack.hub.models.setdefault("org/gguf", Repo()).add(files, "initial")
    model = {"repo_id": "org/gguf", "subfolder": "files", "file": "tiny.Q8_0.gguf"}
    refused = stack.finish(stack.submit(model=model))
    assert (refused["status"], refused["error"]["code"]) == ("failed", "already_quantized")
    job = stack.finish(stack.submit(model=model | {"allow_requantize": True}))
    assert job["status"] == "succeeded", job
    assert "Q8_0" in str(job["result"]["compression"]["notes"])
    assert job["result"]["estimate"]["artifact_bytes"]["expected"] > 0
    files = stack.client.call("GET", f"/jobs/{job['id']}/artifacts")["data"]
    assert {file["path"] for file in files} >= {"LICENSE", "tokenizer.json"}
