"""How quickly the service starts a job, and how it scales with workers. See service_load.py for load.

    python benchmarks/service.py [latency] [scale]

A deployment as `tests/faults` starts it: Postgres, Valkey, two API processes and workers, all on this
machine, the clients too. Results go into results/service.json.
"""

import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import select

from app.db.models import Job
from benchmarks.model import smollm2
from tests.faults.stack import Deployment, deployment

RESULTS = Path(__file__).parent / "results" / "service.json"
EVALUATION = {"perplexity": ["builtin"], "length": 128, "limit": 2, "trials": 1, "new_tokens": 4}


@contextmanager
def service(workers: int, **settings: str) -> Iterator[Deployment]:
    with tempfile.TemporaryDirectory(prefix="spq-bench-") as folder:
        model = smollm2()
        own = {"SPQ_MODEL_DIRS": str(model.parent), "SPQ_SWEEP_SECONDS": "15"} | settings
        with deployment(Path(folder), model, workers=workers, settings=own, clocks={}) as stack:
            stack.ask("GET", "/readyz")
            yield stack


def submit(stack: Deployment) -> str:
    body = {"model": {"path": smollm2().name}, "recipe": "int8", "evaluation": EVALUATION}
    return stack.ask("POST", "/jobs", json=body).json()["id"]


def latency(count: int = 15) -> dict[str, Any]:
    """Seconds from the moment a job is accepted to that of its attempt, which then starts the runner.

    The worker is idle. Both moments are wall-clock times of this machine: the row's, and the log line's.
    """
    waits = []
    with service(1) as stack:
        time.sleep(8)
        for _ in range(count):
            job_id = submit(stack)
            while not stack.children("worker.children.runner"):
                time.sleep(0.05)
            with stack.database.read() as session:
                created = session.scalars(select(Job.created_at).where(Job.id == job_id)).one()
            waits.append((_attempt_started(stack, job_id) - created).total_seconds())
            stack.ask("POST", f"/jobs/{job_id}/cancel")
            while stack.children():
                time.sleep(0.1)
            time.sleep(0.5)
    return {"median_seconds": statistics.median(waits), "highest": max(waits), "jobs": count}


def _attempt_started(stack: Deployment, job_id: str) -> datetime:
    for line in (stack.root / "worker0.log").read_text().splitlines():
        if line.startswith("{") and job_id in line:
            entry = json.loads(line)
            if entry["event"] == "attempt_started":
                return datetime.fromisoformat(entry["ts"])
    raise AssertionError(f"the worker's log does not have {job_id}")


def scale(jobs: int = 8) -> dict[str, Any]:
    """Seconds for the same jobs on one worker and on two, one thread each."""
    seconds = {}
    for workers in (1, 2):
        with service(workers) as stack:
            time.sleep(8)
            begun = time.monotonic()
            ids = {submit(stack) for _ in range(jobs)}
            while True:
                page = stack.ask("GET", "/jobs?limit=100").json()["data"]
                ended = {job["id"] for job in page if job["status"] == "succeeded"}
                failed = [job["error"] for job in page if job["error"]]
                assert not failed, failed[0]
                if ids <= ended:
                    break
                time.sleep(0.5)
            seconds[workers] = time.monotonic() - begun
    return {"jobs": jobs, "seconds": seconds, "speedup": seconds[1] / seconds[2]}


def record(name: str, result: dict[str, Any]) -> None:
    """Show a result, and put it beside the others."""
    report: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    report |= {"machine": platform.platform(), name: result}
    print(name, json.dumps(result), flush=True)
    RESULTS.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    parts = {"latency": latency, "scale": scale}
    for name in sys.argv[1:] or parts:
        record(name, parts[name]())


if __name__ == "__main__":
    main()
