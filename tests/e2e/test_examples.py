"""The worked pipelines, as a reader of them runs them."""

import json
import os
import signal
import subprocess
import sys
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.conftest import wait_until
from tests.servers import free_port

MLFLOW_PYTHON = os.environ.get("SPQ_TEST_MLFLOW_PYTHON", sys.executable)
"""A Python that has MLflow and our client: MLflow wants older libraries than we do, so it has an environment of its own."""
EXAMPLES = Path("examples").resolve()


def environment(stack):
    commands = Path(sys.executable).parent
    return stack.environment | {
        "SPQ_URL": stack.client.url, "SPQ_API_KEY": stack.client.key, "PATH": f"{commands}:{os.environ['PATH']}",
    }  # fmt: skip


def gate(stack, tmp_path, **changes):
    summary = tmp_path / "summary"
    asked = {
        "MODEL": "org/tiny", "RECIPE": "int8", "SPQ_SUBMIT_OPTIONS": "--dataset builtin --limit 8 --length 64 --no-throughput",
        "GITHUB_RUN_ID": "7", "GITHUB_SHA": "abc", "GITHUB_STEP_SUMMARY": str(summary),
    }  # fmt: skip
    done = subprocess.run(
        [EXAMPLES / "gate.sh"],
        env=environment(stack) | asked | changes,
        capture_output=True,
        text=True,
        check=False,
    )
    return done, summary


def test_a_step_fails_where_the_gate_does_and_is_one_job_however_often_it_runs(stack, tmp_path):
    kept, summary = gate(stack, tmp_path)
    assert kept.returncode == 0, kept.stderr
    assert "gate: kl at most 0.01" in summary.read_text()
    again, _ = gate(stack, tmp_path)
    assert again.stdout.splitlines()[0] == kept.stdout.splitlines()[0], "the same run, the same job"
    broken, _ = gate(stack, tmp_path, MAX_KL="1e-12", GITHUB_RUN_ID="8")
    assert broken.returncode == 1
    assert "BROKEN" in broken.stdout
    refused, _ = gate(stack, tmp_path, MODEL="", GITHUB_RUN_ID="9")
    assert refused.returncode == 5


@pytest.mark.extended
def test_the_best_of_several_is_published(stack, tmp_path):
    command = [
        sys.executable,
        EXAMPLES / "best_of.py",
        "org/tiny",
        "me/best-of",
        "--recipes",
        "int8",
        "--text",
        "builtin",
        "--windows",
        "4",
    ]
    done = subprocess.run(
        command, env=environment(stack), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "* int8" in done.stdout
    assert done.stdout.endswith("published as me/best-of\n")
    none = subprocess.run(
        [*command, "--max-kl", "1e-12"],
        env=environment(stack),
        capture_output=True,
        text=True,
        check=False,
    )
    assert none.returncode == 1
    assert "none keeps KL" in none.stderr


@contextmanager
def mlflow_server(folder):
    """MLflow's own server; gone at the end."""
    url = f"http://127.0.0.1:{(port := free_port())}"
    command = [
        MLFLOW_PYTHON, "-m", "mlflow", "server", "--port", str(port), "--workers", "1",
        "--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(folder / "kept"),
    ]  # fmt: skip
    with (folder / "mlflow.log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        wait_until(lambda: answers(f"{url}/health"), 120, f"MLflow: {folder / 'mlflow.log'}")
        yield url
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def answers(url, body=None):
    """What an address answers; None where nothing does."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=20) as response:
            return response.read().decode()
    except OSError:
        return None


def run_in_mlflow(stack, url, job_id):
    """The run that the example makes of a job, as MLflow's server tells it."""
    command = [MLFLOW_PYTHON, EXAMPLES / "to_mlflow.py", job_id]
    done = subprocess.run(
        command,
        env=environment(stack) | {"MLFLOW_TRACKING_URI": url},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    run_id = done.stdout.split()[-1]
    found = json.loads(answers(f"{url}/api/2.0/mlflow/runs/get?run_id={run_id}"))["run"]
    listed = json.loads(answers(f"{url}/api/2.0/mlflow/artifacts/list?run_id={run_id}"))
    names = {one["path"] for one in listed["files"]}
    data = {
        kind: {one["key"]: one["value"] for one in found["data"][kind]}
        for kind in ("metrics", "params", "tags")
    }
    return run_id, found["info"]["status"], data, names


def test_figures_and_files_reach_mlflow(stack, tmp_path):
    program = [MLFLOW_PYTHON, "-c", "import mlflow, spq_client"]
    if subprocess.run(program, capture_output=True, check=False).returncode:
        pytest.skip(f"{MLFLOW_PYTHON} has no MLflow")
    good = stack.finish(stack.submit(labels={"team": "a"}))
    gates = {"extends": "int8", "gates": {"max_kl": 1e-12}}
    gated = stack.finish(stack.submit(recipe=gates))
    with mlflow_server(tmp_path) as url:
        run_id, status, data, names = run_in_mlflow(stack, url, good["id"])
        assert status == "FINISHED"
        assert data["metrics"]["builtin/result/kl"] == pytest.approx(
            good["result"]["texts"]["builtin"]["result"]["kl"]
        )
        assert "builtin/source/perplexity" in data["metrics"]
        assert data["params"]["recipe"] == "int8"
        assert data["tags"]["team"] == "a"
        assert names == {"artifact", "job.json", "job.log"}
        again, *_ = run_in_mlflow(stack, url, good["id"])
        assert again == run_id, "one job, one run"
        _, status, data, names = run_in_mlflow(stack, url, gated["id"])
        assert status == "FAILED"
        assert data["tags"]["spq.error"].startswith("quality_gate_failed")
        assert data["metrics"]["builtin/result/kl"] > 0, "figures of a failed gate are figures"
        assert names == {"job.json", "job.log"}
