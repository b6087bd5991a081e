"""`spq serve`: one command, SQLite, an embedded broker, and the client against it."""

import json
import os
import signal
import socket
import stat
import subprocess
import sys

import httpx2
import psutil
import pytest
from transformers import AutoModelForCausalLM

import spq_core  # noqa: F401  registers its format
from tests.e2e.conftest import wait_until
from tests.servers import free_port


@pytest.fixture
def served(tmp_path, tiny_llama):
    home, port = tmp_path / "home", free_port()
    environment = os.environ | {"SPQ_HEARTBEAT_SECONDS": "0.5", "SPQ_THREADS": "1"}
    with (tmp_path / "serve.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "worker.cli", "serve", "--home", str(home), "--port", str(port), "--models", str(tiny_llama.parent)],
            env=environment, stdout=log, stderr=log,
        )  # fmt: skip
    url = f"http://127.0.0.1:{port}"

    def ready():
        try:
            return httpx2.get(f"{url}/readyz", timeout=2).is_success
        except httpx2.TransportError:
            return False

    wait_until(ready, 30, "spq serve")
    yield home, url, process
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        process.wait(100)


def jobs(home, url, *arguments, check=True):
    command = [
        sys.executable,
        "-m",
        "worker.cli",
        "jobs",
        "--url",
        url,
        "--key-file",
        str(home / "api-key"),
        *arguments,
    ]
    return subprocess.run(command, capture_output=True, text=True, check=check)


def test_a_job_through_the_client(served, tmp_path):
    home, url, process = served
    said = (tmp_path / "serve.log").read_text()
    assert f"Open {url}/ui/#code=" in said
    assert "Warning" not in said
    assert stat.S_IMODE((home / "api-key").stat().st_mode) == 0o600
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert stat.S_IMODE((home / "spq.db").stat().st_mode) == 0o600
    arguments = (
        "submit",
        "tiny-llama",
        "--local",
        "--dataset",
        "builtin",
        "--limit",
        "2",
        "--watch",
        "--json",
    )
    done = jobs(home, url, *arguments)
    job = json.loads(done.stdout)
    assert job["status"] == "succeeded"
    assert (home / "artifacts" / job["id"] / "model.safetensors.index.json").is_file()
    assert job["id"][-8:] in jobs(home, url, "list").stdout
    assert json.loads(jobs(home, url, "show", "@last", "--json").stdout)["id"] == job["id"]
    assert "stage 1 of" in jobs(home, url, "logs", job["id"][-6:]).stdout
    refused = jobs(home, url, "submit", "missing", "--local", check=False)
    assert refused.returncode == 5
    assert "Usage" in jobs(tmp_path, url, "watch", "--help").stdout, "help needs no key"
    assert "SPQ_MODEL_DIRS" in refused.stderr

    fetched = jobs(home, url, "download", job["id"], "--out", str(tmp_path / "fetched"))
    assert fetched.stdout.strip() == str(tmp_path / "fetched")
    AutoModelForCausalLM.from_pretrained(tmp_path / "fetched")
    again = jobs(home, url, "download", job["id"], "--out", str(tmp_path / "fetched"), check=False)
    assert (again.returncode, "output_exists" in again.stderr) == (1, True)

    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 3
    second = subprocess.run(
        [sys.executable, "-m", "worker.cli", "serve", "--home", str(home), "--port", str(free_port())],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert second.returncode == 1
    assert "another spq serve uses" in second.stderr
    process.send_signal(signal.SIGTERM)
    process.wait(100)
    wait_until(
        lambda: not any(child.is_running() for child in children), 10, "no process left behind"
    )


def test_nothing_outlives_a_service_that_is_killed(served):
    """Or its worker would go on taking jobs, beside the worker of the next service."""
    _, _, process = served
    children = psutil.Process(process.pid).children(recursive=True)
    wait_until(
        lambda: any("celery" in " ".join(child.cmdline()) for child in children), 5, "the worker"
    )
    process.kill()
    process.wait(100)
    wait_until(lambda: not any(alive(child) for child in children), 20, "no process left behind")


def alive(process):
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def test_a_taken_port_is_named_before_anything_is_started(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        done = subprocess.run(
            [sys.executable, "-m", "worker.cli", "serve", "--home", str(tmp_path / "h"), "--port", str(port)],
            capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip
    assert done.returncode == 1
    assert f"port_in_use: port {port} of 127.0.0.1" in done.stderr
    assert "spq listens on" not in done.stderr
