"""Jobs that are stopped, run out of time, or meet a Hub that stumbles."""

import os
import signal

import pytest

from tests.e2e.bodies import LONG, SLOW
from tests.e2e.conftest import wait_until
from tests.marks import every


@pytest.mark.parametrize("whole_group", every(2, [True, False]))
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
    process.wait(100)
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
    wait_until(stack.nothing_left, 10, "an empty scratch folder")


def test_a_job_that_waits_longer_than_its_client_allows_fails(stack):
    stack.kill("worker")
    job_id = stack.submit(limits={"max_pending_seconds": 1})
    job = stack.finish(job_id)
    assert job["error"]["code"] == "deadline_exceeded_before_start"
    assert job["attempt"] == 0


def test_a_cancelled_job_stops_and_publishes_nothing(stack):
    job_id = stack.submit(evaluation=SLOW, output={"repo_id": "me/out"})
    stack.wait_for_stage(job_id, "throughput")
    assert stack.client.call("POST", f"/jobs/{job_id}/cancel")["status"] == "canceling"
    job = stack.finish(job_id, 30)
    assert job["status"] == "canceled"
    wait_until(stack.nothing_left, 15, "scratch and processes gone")
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
