"""Jobs through every real part: HTTP, Postgres, Valkey, Celery, child programs, the Hub's protocol."""

import itertools
import os
import re
import shutil
import signal
import subprocess
import sys

import pytest
from sqlalchemy import select, text
from transformers import AutoModelForCausalLM

from app.artifacts.object_store import connect as connect_store
from app.client.http import ApiError
from app.db.models import JobSecret
from spq_core.artifact.manifest import read_manifest, verify_files
from tests.e2e.conftest import is_ready, wait_until
from tests.hub_server import WRITE_TOKEN
from tests.models import some_ids
from tests.spq_core.hub.test_hub import converted
from worker.storage.figures import FOLDER

SLOW = {"perplexity": ["builtin"], "length": 64, "limit": 2, "trials": 12, "new_tokens": 150}
PAPER = {"extends": "spq-paper", "calibration": {"dataset": "builtin", "samples": 3, "length": 32}}

HEADERS = ["config.json", "model.safetensors"]
"""What is read of before a job is accepted."""
LONG = {
    "extends": "spq-paper",
    "stages": [
        {"type": "quantize", "method": "rate"},
    ],
    "target": {"bytes_ratio": 0.5},
    "calibration": {"dataset": "builtin", "form": "windows", "samples": 48, "length": 128},
}


def everything_recorded(stack):
    """All rows of all tables, and all files a job left, as one text."""
    with stack.database.engine.connect() as connection:
        tables = connection.execute(
            text("SELECT table_name FROM information_schema.tables WHERE table_schema='public'")
        )
        rows = [str(connection.execute(text(f"SELECT * FROM {name}")).all()) for (name,) in tables]
    files = [
        path.read_bytes().decode(errors="replace")
        for path in stack.root.rglob("*")
        if path.is_file()
    ]
    return "\n".join(rows + files)


def secrets_kept(stack):
    with stack.database.read() as session:
        return session.scalars(select(JobSecret)).all()


def nothing_left(stack):
    attempts = [entry for entry in stack.scratch.iterdir() if entry.name != FOLDER]
    return not attempts and not stack.runners()


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
    wait_until(lambda: nothing_left(stack), 15, "scratch and processes gone")
    assert WRITE_TOKEN not in everything_recorded(stack)


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


def test_figures_of_the_source_are_measured_once_for_all_jobs(stack):
    first = stack.finish(stack.submit(recipe=PAPER))
    again = stack.finish(stack.submit(recipe="gptq-4"))
    rows = {row["name"]: row for row in again["result"]["rows"]}
    assert rows["source"]["origin"]["by"] == first["id"]
    assert rows["int8"]["perplexity"] == first["result"]["rows"][1]["perplexity"]
    assert "origin" not in rows["result"]
    assert rows["source"]["decode_tokens_per_second"], "speeds are always measured"
    refused = first["request"]["evaluation"] | {"reuse": False}
    anew = stack.finish(stack.submit(recipe="gptq-4", evaluation=refused))
    assert not any("origin" in row for row in anew["result"]["rows"])


def test_an_unsafe_model_fails_with_the_reason_and_costs_no_weights(stack):
    repo = stack.hub.models["org/tiny"]
    files = dict(repo.commits[-1].files)
    files["pytorch_model.bin"] = files.pop("model.safetensors")
    repo.add(files, "pickled")
    with pytest.raises(ApiError, match="pytorch_model.bin") as refused:  # before there is a job
        stack.submit()
    assert refused.value.code == "unsafe_format"
    assert stack.hub.downloaded() == []


def test_a_missing_model_fails_with_the_hubs_answer(stack):
    job = stack.finish(stack.submit(model={"repo_id": "org/nothing"}))
    assert (job["status"], job["error"]["code"]) == ("failed", "model_not_found")


def test_a_result_below_the_gate_is_not_published_but_its_figures_are_kept(stack):
    recipe = {"extends": "int8", "gates": {"max_perplexity_ratio": 0.5}}
    job_id = stack.submit(recipe=recipe, output={"repo_id": "me/bad"})
    job = stack.finish(job_id)
    assert (job["status"], job["error"]["code"]) == ("failed", "quality_gate_failed")
    assert "the recipe allows 0.5" in job["error"]["message"]
    assert "me/bad" not in stack.hub.models
    metrics = stack.client.call("GET", f"/jobs/{job_id}/metrics")["data"]
    assert any(one["name"] == "perplexity" for one in metrics)
    assert stack.client.call("GET", f"/jobs/{job_id}/artifacts")["data"] == []


def test_a_failed_gate_can_keep_the_artifact_for_a_look(stack):
    recipe = {"extends": "int8", "gates": {"max_perplexity_ratio": 0.5, "on_fail": "keep"}}
    job_id = stack.submit(recipe=recipe, output={"repo_id": "me/bad"})
    assert stack.finish(job_id)["error"]["code"] == "quality_gate_failed"
    files = {one["path"] for one in stack.client.call("GET", f"/jobs/{job_id}/artifacts")["data"]}
    assert "config.json" in files
    assert "me/bad" not in stack.hub.models


def test_a_job_that_could_not_be_published_is_told_before_any_work(stack, tiny_llama):
    stack.kill("worker")
    stack.environment["SPQ_MODEL_DIRS"] = str(tiny_llama.parent)
    stack.environment["SPQ_HUB_TOKEN"] = ""
    stack.start_worker("worker2")
    job = stack.finish(stack.submit(output={"repo_id": "me/out"}))
    assert (job["status"], job["error"]["code"]) == ("failed", "hub_permission_denied")
    assert "SPQ_HUB_TOKEN" in job["error"]["message"]
    assert stack.hub.downloaded() == HEADERS
    own = stack.finish(stack.submit(output={"repo_id": "me/out"}, hub_token=WRITE_TOKEN))
    assert own["status"] == "succeeded", own
    assert len(stack.hub.models["me/out"].commits) == 2
    assert WRITE_TOKEN not in everything_recorded(stack)
    wait_until(lambda: not secrets_kept(stack), 10, "the token is forgotten")


def test_a_foreign_output_repository_is_refused_before_any_work(stack, tiny_llama):
    stack.hub.add_model("me/theirs", tiny_llama, private=True)
    job = stack.finish(stack.submit(output={"repo_id": "me/theirs"}))
    assert job["error"]["code"] == "output_not_empty"
    assert stack.hub.downloaded() == HEADERS


def test_an_artifact_that_could_not_be_published_is_still_there(stack):
    stack.hub.fail_next("/commit/", 412)
    job_id = stack.submit(output={"repo_id": "me/out"})
    job = stack.finish(job_id)
    assert (job["status"], job["error"]["code"]) == ("failed", "hub_rejected")
    assert WRITE_TOKEN not in everything_recorded(stack)
    files = {one["path"] for one in stack.client.call("GET", f"/jobs/{job_id}/artifacts")["data"]}
    assert "model.safetensors.index.json" in files


def test_settings_mistakes_are_named_without_secrets(stack):
    environment = stack.environment | {"SPQ_LEASE_SECONDS": "soon"}
    for command in (["worker"], ["api"]):
        failed = subprocess.run(
            [sys.executable, "-m", "worker.cli", *command],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert failed.returncode == 1
        assert "SPQ_LEASE_SECONDS" in failed.stderr
        assert "Traceback" not in failed.stderr
        assert WRITE_TOKEN not in failed.stderr


def test_a_killed_runner_is_tried_again(stack):
    job_id = stack.submit(evaluation=SLOW, output={"repo_id": "me/out"})
    stack.wait_for_stage(job_id, "throughput")
    stack.runners()[-1].kill()  # the program itself; those around it go with it
    job = stack.finish(job_id)
    assert (job["status"], job["attempt"]) == ("succeeded", 2)
    assert len(stack.hub.models["me/out"].commits) == 2
    wait_until(lambda: nothing_left(stack), 15, "scratch and processes gone")


def test_a_killed_worker_loses_nothing(stack):
    job_id = stack.submit(evaluation=SLOW, output={"repo_id": "me/out"})
    stack.wait_for_stage(job_id, "throughput")
    stack.kill("worker")
    wait_until(lambda: not stack.runners(), 10, "the runner dies with its supervisor")
    (stack.scratch / "job_0000000000000000000000000000dead.1").mkdir()
    stack.start_worker("worker2")
    job = stack.finish(job_id)
    assert (job["status"], job["attempt"]) == ("succeeded", 2)
    assert len(stack.hub.models["me/out"].commits) == 2
    wait_until(lambda: nothing_left(stack), 15, "scratch and processes gone")


def test_another_worker_goes_on_from_the_last_finished_layer(stack):
    # Three blocks, and training of the last one that takes long enough to be interrupted.
    job_id = stack.submit(recipe=LONG)
    wait_until(
        lambda: list(stack.root.glob("artifacts/.work/*/artifact.state/state.json")), 90, "a state"
    )
    stack.kill("worker")
    stack.start_worker("second")
    job = stack.finish(job_id)
    assert job["status"] == "succeeded", job
    assert job["attempt"] == 2
    lines = [line["text"] for line in stack.client.call("GET", f"/jobs/{job_id}/logs")["data"]]
    assert any("going on with what an earlier attempt has finished" in line for line in lines)
    model = AutoModelForCausalLM.from_pretrained(stack.root / "artifacts" / job_id)
    assert model(some_ids()).logits.isfinite().all()
    wait_until(lambda: nothing_left(stack), 10, "an empty scratch folder")
    assert not list(stack.root.glob("artifacts/.work/*"))


def test_a_worker_on_another_machine_goes_on_with_what_is_in_the_object_store(
    stack, s3, object_store
):
    """Nothing of the first machine is left but what it copied while it ran."""
    objects = connect_store(object_store).store
    stack.kill("api")
    stack.kill("worker")
    del stack.environment["SPQ_ARTIFACT_DIR"]
    stack.environment |= s3.variables | {
        "SPQ_ARTIFACT_STORE": object_store, "SPQ_CHECKPOINT_SECONDS": "0.5",
    }  # fmt: skip
    stack.start("api", "api", "--port", stack.client.url.rpartition(":")[2])
    wait_until(lambda: is_ready(stack.client.url), 30, "the API")
    stack.start_worker()
    job_id = stack.submit(recipe=LONG)
    wait_until(lambda: list(stack.scratch.glob("*/work/artifact.state/state.json")), 90, "a state")
    for runner in stack.runners():
        runner.suspend()
    copy = f"work/{job_id}/1/index.json"
    wait_until(
        lambda: b"artifact.state/state.json" in bytes(objects.get(copy).bytes()), 20, "a copy"
    )
    stack.kill("worker")
    shutil.rmtree(stack.scratch)
    stack.start_worker("second")
    job = stack.finish(job_id)
    assert (job["status"], job["attempt"]) == ("succeeded", 2), job
    log = stack.client.call("GET", f"/jobs/{job_id}/logs")
    assert "going on with what an earlier attempt has finished" in str(log)
    folder = stack.root / "downloaded"
    folder.mkdir()
    for file in stack.client.call("GET", f"/jobs/{job_id}/artifacts")["data"]:
        stack.client.download(file["url"], folder / file["path"], file["sha256"])
    verify_files(folder, read_manifest(folder))
    assert AutoModelForCausalLM.from_pretrained(folder)(some_ids()).logits.isfinite().all()
    wait_until(lambda: nothing_left(stack), 10, "an empty scratch folder")
    secret = s3.variables["AWS_SECRET_ACCESS_KEY"]
    assert secret not in everything_recorded(stack)


@pytest.mark.parametrize("whole_group", [False, True])
def test_a_worker_that_is_told_to_stop_gives_its_job_back(stack, whole_group):
    job_id = stack.submit(recipe=LONG)
    wait_until(
        lambda: list(stack.root.glob("artifacts/.work/*/artifact.state/state.json")), 90, "a state"
    )
    process = stack.processes.pop("worker")
    if whole_group:
        os.killpg(process.pid, signal.SIGTERM)
    else:
        process.terminate()
    process.wait(20)
    job = stack.job(job_id)
    assert job["status"] == "queued", "at once, not when the lease ends"
    assert job["attempt"] < job["max_attempts"] - 1, "it does not count"
    assert not stack.runners()
    stack.start_worker("second")
    assert stack.finish(job_id)["status"] == "succeeded"


def test_a_job_that_takes_longer_than_its_client_allows_fails(stack):
    job_id = stack.submit(evaluation=SLOW, limits={"max_runtime_seconds": 4})
    job = stack.finish(job_id)
    assert job["error"]["code"] == "deadline_exceeded"
    wait_until(lambda: nothing_left(stack), 10, "an empty scratch folder")


def test_a_job_that_waits_longer_than_its_client_allows_fails(stack):
    stack.kill("worker")
    job_id = stack.submit(limits={"max_pending_seconds": 1})
    job = stack.finish(job_id)
    assert job["error"]["code"] == "deadline_exceeded_before_start"
    assert job["attempt"] == 0


def test_a_job_that_always_crashes_ends_with_the_reason(stack):
    job_id = stack.submit(evaluation=SLOW)
    for _ in range(3):
        outside, *_ = wait_until(lambda: stack.runners() or None, 60, "a runner")
        outside.kill()
        wait_until(lambda gone=outside: not gone.is_running(), 10, "runner gone")
    job = stack.finish(job_id)
    assert (job["status"], job["attempt"], job["error"]["code"]) == ("failed", 3, "runner_crashed")


def test_a_cancelled_job_stops_and_publishes_nothing(stack):
    job_id = stack.submit(evaluation=SLOW, output={"repo_id": "me/out"})
    stack.wait_for_stage(job_id, "throughput")
    assert stack.client.call("POST", f"/jobs/{job_id}/cancel")["status"] == "canceling"
    job = stack.finish(job_id, 30)
    assert job["status"] == "canceled"
    wait_until(lambda: nothing_left(stack), 15, "scratch and processes gone")
    assert "me/out" not in stack.hub.models


def test_a_hub_that_stumbles_gets_one_commit(stack):
    stack.hub.fail_next("/commit/", 503, times=2)
    stack.hub.fail_next("/resolve/", 500, times=1)
    job = stack.finish(stack.submit(output={"repo_id": "me/out"}))
    assert (job["status"], job["attempt"]) == ("succeeded", 1), job
    assert len(stack.hub.models["me/out"].commits) == 2


def test_a_commit_whose_answer_is_lost_is_not_made_twice(stack):
    stack.hub.lost_answers.append("/commit/")
    job = stack.finish(stack.submit(output={"repo_id": "me/out"}))
    assert job["status"] == "succeeded", job
    repo = stack.hub.models["me/out"]
    assert len(repo.commits) == 2
    assert job["result"]["published"]["commit"] == repo.commits[-1].oid


def test_a_job_accepted_while_no_worker_runs_waits_for_one(stack):
    stack.kill("worker")
    job_id = stack.submit()
    assert stack.job(job_id)["status"] == "queued"
    stack.start_worker("worker2")
    assert stack.finish(job_id)["status"] == "succeeded"


@pytest.mark.parametrize("arguments", [["jobs", "--help"], ["worker", "--help"], ["--help"]])
def test_commands_explain_themselves(arguments):
    shown = subprocess.run(
        [sys.executable, "-m", "worker.cli", *arguments], capture_output=True, text=True, check=True
    )
    assert "Usage:" in shown.stdout


MEASURED = {"perplexity": ["builtin"], "length": 64, "limit": 900, "throughput": False}


def kill_while_measuring(stack, job_id, stage="perplexity"):
    """End the runner as the kernel does when memory runs out."""
    stack.wait_for_stage(job_id, stage)
    attempt = stack.job(job_id)["attempt"]
    for runner in stack.runners():
        runner.kill()
    wait_until(lambda: stack.job(job_id)["attempt"] > attempt, 60, "the next attempt")


def test_a_finished_artifact_survives_every_kill_of_what_measures_it(stack):
    """Once: the next attempt measures and compresses nothing again. Twice: a result that says what it lacks."""
    once = stack.submit(evaluation=MEASURED)
    kill_while_measuring(stack, once, "perplexity on builtin (result)")
    job = stack.finish(once)
    assert (job["status"], job["attempt"]) == ("succeeded", 2), job
    assert job["result"]["missing"] is None
    assert len(job["result"]["rows"]) == 2
    log = stack.client.call("GET", f"/jobs/{once}/logs")
    assert "going on with what an earlier attempt has finished" in str(log)
    events = stack.client.call("GET", f"/jobs/{once}/events", limit=1000)["data"]
    again = {one["data"].get("stage", "") for one in events if one["attempt"] == 2}
    assert "perplexity on builtin (result)" in again
    assert not {stage for stage in again if "(source)" in stage or "quantize" in stage}, again
    twice = stack.submit(evaluation=MEASURED)
    kill_while_measuring(stack, twice)
    kill_while_measuring(stack, twice)
    job = stack.finish(twice)
    assert (job["status"], job["attempt"]) == ("succeeded", 3), job
    assert job["result"]["missing"]["code"] == "evaluation_killed"
    assert job["result"]["rows"] == []
    folder = stack.root / "artifacts" / twice
    verify_files(folder, read_manifest(folder))
    assert AutoModelForCausalLM.from_pretrained(folder)(some_ids()).logits.isfinite().all()
    assert stack.client.call("GET", f"/jobs/{twice}/artifacts")["data"]
    assert nothing_left(stack)
