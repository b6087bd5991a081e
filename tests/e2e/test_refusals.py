"""Jobs that cannot be, or whose result is not good enough: said early, and with what was found out."""

import subprocess
import sys

import pytest

from app.client.http import ApiError
from tests.e2e.bodies import HEADERS
from tests.e2e.conftest import wait_until
from tests.hub_server import WRITE_TOKEN


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
    assert WRITE_TOKEN not in stack.everything_recorded()
    wait_until(lambda: not stack.secrets_kept(), 10, "the token is forgotten")


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
    assert WRITE_TOKEN not in stack.everything_recorded()
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


@pytest.mark.parametrize("arguments", [["jobs", "--help"], ["worker", "--help"], ["--help"]])
def test_commands_explain_themselves(arguments):
    shown = subprocess.run(
        [sys.executable, "-m", "worker.cli", *arguments], capture_output=True, text=True, check=True
    )
    assert "Usage:" in shown.stdout
