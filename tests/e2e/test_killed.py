"""Processes that die, and what goes on: nothing is lost, nothing is made twice."""

import shutil

import pytest
from transformers import AutoModelForCausalLM

from app.artifacts.object_store import connect as connect_store
from spq_core.artifact.manifest import read_manifest, verify_files
from tests.e2e.bodies import LONG, MEASURED, SLOW
from tests.e2e.conftest import is_ready, wait_until
from tests.models import some_ids


def test_a_killed_runner_is_tried_again(stack):
    job_id = stack.submit(evaluation=SLOW, output={"repo_id": "me/out"})
    stack.wait_for_stage(job_id, "throughput")
    waiting = stack.runners()[-1]  # of the load gate; the program started it
    waiting.parent().kill()  # those around it go with it
    job = stack.finish(job_id)
    assert (job["status"], job["attempt"]) == ("succeeded", 2)
    assert len(stack.hub.models["me/out"].commits) == 2
    wait_until(stack.nothing_left, 15, "scratch and processes gone")


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
    wait_until(stack.nothing_left, 15, "scratch and processes gone")


@pytest.mark.extended
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
    wait_until(stack.nothing_left, 10, "an empty scratch folder")
    assert not list(stack.root.glob("artifacts/.work/*"))


@pytest.mark.extended
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
    wait_until(stack.nothing_left, 10, "an empty scratch folder")
    secret = s3.variables["AWS_SECRET_ACCESS_KEY"]
    assert secret not in stack.everything_recorded()


def test_a_job_that_always_crashes_ends_with_the_reason(stack):
    job_id = stack.submit(evaluation=SLOW)
    for _ in range(3):
        outside, *_ = wait_until(lambda: stack.runners() or None, 60, "a runner")
        outside.kill()
        wait_until(lambda gone=outside: not gone.is_running(), 10, "runner gone")
    job = stack.finish(job_id)
    assert (job["status"], job["attempt"], job["error"]["code"]) == ("failed", 3, "runner_crashed")


def kill_while_measuring(stack, job_id, stage="perplexity"):
    """End the runner as the kernel does when memory runs out."""
    stack.wait_for_stage(job_id, stage)
    attempt = stack.job(job_id)["attempt"]
    for runner in stack.runners():
        runner.kill()
    wait_until(lambda: stack.job(job_id)["attempt"] > attempt, 60, "the next attempt")


@pytest.mark.extended
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
    assert stack.nothing_left()
