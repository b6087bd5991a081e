"""How quickly the service starts a job, how it scales with workers, and how it bears load.

    python benchmarks/service.py [latency] [scale] [load]

A deployment as `tests/faults` starts it: Postgres, Valkey, two API processes and workers, all on this
machine, the clients too. Results go into results/service.json.
"""

import asyncio
import json
import platform
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx2
from sqlalchemy import select, text

from app.db.models import Job
from benchmarks.model import smollm2
from tests.faults.stack import Deployment, deployment

RESULTS = Path(__file__).parent / "results" / "service.json"
JOBS_IN_TABLE, POLLERS, SUBMISSIONS_A_SECOND, LOAD_SECONDS = 1_000_000, 200, 50, 60
POLL_SECONDS = 2.0
EVALUATION = {"perplexity": ["builtin"], "length": 128, "limit": 2, "trials": 1, "new_tokens": 4}


@contextmanager
def service(workers: int, **settings: str) -> Iterator[Deployment]:
    with tempfile.TemporaryDirectory(prefix="spq-bench-") as folder:
        model = smollm2()
        own = {"SPQ_MODEL_DIRS": str(model.parent), "SPQ_SWEEP_SECONDS": "15"} | settings
        with deployment(Path(folder), model, workers=workers, settings=own) as stack:
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
            while not stack.children("worker.runner"):
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
                if all(job["status"] == "succeeded" for job in page if job["id"] in ids):
                    break
                time.sleep(0.5)
            seconds[workers] = time.monotonic() - begun
    return {"jobs": jobs, "seconds": seconds, "speedup": seconds[1] / seconds[2]}


def load() -> dict[str, Any]:
    """Latencies with a million jobs in the table, pollers, and a stream of submissions."""
    with service(0, SPQ_SUBMISSIONS_PER_MINUTE="1000000") as stack:
        with stack.database.engine.begin() as connection:
            connection.execute(text("SET statement_timeout = 0"))
            connection.execute(
                text(
                    "INSERT INTO jobs (id, tenant, status, version, last_event, attempt, max_attempts, request,"
                    " recipe, recipe_sha256, model_name, result, committing, created_at, started_at, finished_at)"
                    " SELECT 'job_' || lpad(to_hex(n), 32, '0'), CASE n % 10 WHEN 0 THEN 't' ELSE 'u' || n % 100 END,"
                    " 'succeeded', 9, 0, 1, 3, '{\"labels\": {}}', '{}', 'd', 'm' || n % 1000, '{\"rows\": []}', false,"
                    " now() - n * interval '1 second', now() - n * interval '1 second', now()"
                    f" FROM generate_series(1, {JOBS_IN_TABLE}) n"
                )
            )
        with stack.database.engine.connect() as connection:
            connection.execution_options(isolation_level="AUTOCOMMIT").execute(text("ANALYZE jobs"))
        return asyncio.run(_mix(stack))


async def _mix(stack: Deployment) -> dict[str, Any]:
    urls = [f"http://127.0.0.1:{port}" for port in stack.ports]
    headers = {"Authorization": f"Bearer {stack.key}"}
    limits = httpx2.Limits(max_connections=300)
    async with httpx2.AsyncClient(headers=headers, timeout=30, limits=limits) as client:
        mix = Mix(client, urls, time.monotonic() + LOAD_SECONDS)
        await asyncio.gather(mix.submit(), *(mix.poll(number) for number in range(POLLERS)))
    return {
        "jobs_in_table": JOBS_IN_TABLE,
        "seconds": LOAD_SECONDS,
        "errors": {kind: mix.errors.count(kind) for kind in set(mix.errors)},
        **{kind: _spread(found) for kind, found in mix.times.items() if found},
    }


@dataclass
class Mix:
    """Clients: most poll one job, some a list, half with ETags; one stream of submissions."""

    client: httpx2.AsyncClient
    urls: list[str]
    end: float
    times: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    errors: list[str] = field(default_factory=list)

    async def ask(self, kind: str, method: str, url: str, **options: Any) -> httpx2.Response | None:
        begun = time.perf_counter()
        try:
            answer = await self.client.request(method, url, **options)
        except httpx2.TransportError as error:
            self.errors.append(type(error).__name__)
            return None
        took = time.perf_counter() - begun
        self.times["GET 304" if answer.status_code == 304 else kind].append(took)
        if answer.is_error:
            self.errors.append(str(answer.status_code))
        return answer

    async def poll(self, number: int) -> None:
        etag = ""
        url = self.urls[number % 2]
        await asyncio.sleep(POLL_SECONDS * number / POLLERS)
        while time.monotonic() < self.end:
            if number % 10 == 0:
                await self.ask("list", "GET", f"{url}/jobs?status=succeeded&limit=20")
            else:
                job = f"{url}/jobs/job_{(number + 1) * 10:032x}"
                known = {"If-None-Match": etag} if etag and number % 4 < 2 else {}
                answer = await self.ask("GET", "GET", job, headers=known)
                etag = answer.headers.get("etag", "") if answer else ""
            await asyncio.sleep(POLL_SECONDS)

    async def submit(self) -> None:
        body = {"model": {"path": smollm2().name}, "recipe": "int8"}
        begun, sent = time.monotonic(), 0
        pending = []
        while time.monotonic() < self.end:
            url = f"{self.urls[sent % 2]}/jobs"
            pending.append(asyncio.create_task(self.ask("POST", "POST", url, json=body)))
            sent += 1
            await asyncio.sleep(max(0.0, begun + sent / SUBMISSIONS_A_SECOND - time.monotonic()))
        await asyncio.gather(*pending)


def _spread(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    return {
        "requests": len(ordered),
        "median_ms": 1000 * statistics.median(ordered),
        "p99_ms": 1000 * ordered[int(0.99 * (len(ordered) - 1))],
        "highest_ms": 1000 * ordered[-1],
    }


def main() -> None:
    parts = {"latency": latency, "scale": scale, "load": load}
    report: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    report["machine"] = platform.platform()
    for name in sys.argv[1:] or parts:
        report[name] = parts[name]()
        print(name, json.dumps(report[name]), flush=True)
        RESULTS.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
