"""How the service bears load, and how MLflow's tracking server bears the same.

    python benchmarks/service_load.py [--mlflow FOLDER_OF_ITS_ENVIRONMENT]

A million jobs (for MLflow: runs) in the table, 200 clients that poll every two seconds, 50 submissions a
second, for a minute, after a warm-up of ten seconds that is not counted. Two API processes, Postgres and
the clients share this machine. Each service's requests are those its users send for the same purpose:

    this service                              MLflow
    GET /jobs/{id}, half with its ETag        GET  runs/get
    GET /jobs?status=succeeded&limit=20       POST runs/search, 20 finished runs
    POST /jobs                                POST runs/create

MLflow 3.17 was measured, in an environment of its own (`pip install mlflow psycopg2-binary`). It checks no
API key, writes one row a run, and has neither events nor a queue to serve.
"""

import argparse
import asyncio
import statistics
import subprocess
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
from sqlalchemy import Engine, create_engine, text

from benchmarks.model import smollm2
from benchmarks.service import record, service
from tests.servers import PostgresServer, free_port

ROWS, POLLERS, SUBMISSIONS_A_SECOND, WARMUP_SECONDS, SECONDS = 1_000_000, 200, 50, 10, 60
POLL_SECONDS = 2.0
FILL_JOBS = f"""
INSERT INTO jobs (id, tenant, status, version, last_event, attempt, max_attempts, request, recipe, recipe_sha256,
  model_name, result, committing, created_at, started_at, finished_at)
SELECT 'job_' || lpad(to_hex(n), 32, '0'), CASE n % 10 WHEN 0 THEN 't' ELSE 'u' || n % 100 END, 'succeeded', 9, 0, 1,
  3, '{{"labels": {{}}}}', '{{}}', 'd', 'm' || n % 1000, '{{"rows": []}}', false,
  now() - n * interval '1 second', now() - n * interval '1 second', now()
FROM generate_series(1, {ROWS}) n"""
FILL_RUNS = f"""
INSERT INTO runs (run_uuid, name, source_type, status, start_time, end_time, lifecycle_stage, experiment_id, user_id)
SELECT lpad(to_hex(n), 32, '0'), 'r' || n, 'UNKNOWN', 'FINISHED', 1700000000000 - n, 1700000000000, 'active', 0, 'u'
FROM generate_series(1, {ROWS}) n"""


@dataclass(frozen=True)
class Asked:
    """One request."""

    kind: str
    method: str
    path: str
    json: dict[str, Any] | None = None


class OurClient:
    """What clients ask of this service."""

    def look(self, number: int) -> Asked:
        return Asked("GET", "GET", f"/jobs/job_{(number + 1) * 10:032x}")

    def listing(self) -> Asked:
        return Asked("list", "GET", "/jobs?status=succeeded&limit=20")

    def submission(self) -> Asked:
        body = {"model": {"path": smollm2().name}, "recipe": "int8"}
        return Asked("POST", "POST", "/jobs", body)


class MlflowClient:
    """What clients ask of MLflow."""

    base = "/api/2.0/mlflow/runs"

    def look(self, number: int) -> Asked:
        return Asked("GET", "GET", f"{self.base}/get?run_id={number + 1:032x}")

    def listing(self) -> Asked:
        body = {
            "experiment_ids": ["0"],
            "filter": "attributes.status = 'FINISHED'",
            "max_results": 20,
        }
        return Asked("list", "POST", f"{self.base}/search", body)

    def submission(self) -> Asked:
        body = {"experiment_id": "0", "start_time": int(time.time() * 1000)}
        return Asked("POST", "POST", f"{self.base}/create", body)


@dataclass
class Mix:
    """The clients: most poll one job, some a list, half with ETags; and one stream of submissions."""

    client: httpx2.AsyncClient
    asks: OurClient | MlflowClient
    urls: list[str]
    begun: float = field(default_factory=time.monotonic)
    times: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    errors: list[str] = field(default_factory=list)

    def going_on(self) -> bool:
        return time.monotonic() < self.begun + WARMUP_SECONDS + SECONDS

    async def send(self, asked: Asked, number: int, etag: str = "") -> str:
        """Send a request, note how long it took, and return the answer's ETag."""
        begun = time.monotonic()
        counted = begun > self.begun + WARMUP_SECONDS
        headers = {"If-None-Match": etag} if etag else {}
        url = self.urls[number % len(self.urls)] + asked.path
        try:
            answer = await self.client.request(asked.method, url, json=asked.json, headers=headers)
        except httpx2.TransportError as error:
            self.errors.append(type(error).__name__)
            return ""
        if counted:
            kind = "GET 304" if answer.status_code == 304 else asked.kind
            self.times[kind].append(time.monotonic() - begun)
        if answer.is_error:
            self.errors.append(f"{asked.kind} {answer.status_code}")
        return answer.headers.get("etag", "")

    async def poll(self, number: int) -> None:
        etag = ""
        await asyncio.sleep(POLL_SECONDS * number / POLLERS)
        while self.going_on():
            if number % 10 == 0:
                await self.send(self.asks.listing(), number)
            else:
                etag = await self.send(self.asks.look(number), number, etag)
                etag = etag if number % 4 < 2 else ""
            await asyncio.sleep(POLL_SECONDS)

    async def submit(self) -> None:
        sent = 0
        async with asyncio.TaskGroup() as pending:
            while self.going_on():
                pending.create_task(self.send(self.asks.submission(), sent))
                sent += 1
                due = self.begun + sent / SUBMISSIONS_A_SECOND
                await asyncio.sleep(max(0.0, due - time.monotonic()))


async def run(
    asks: OurClient | MlflowClient, ports: list[int], headers: dict[str, str]
) -> dict[str, Any]:
    urls = [f"http://127.0.0.1:{port}" for port in ports]
    limits = httpx2.Limits(max_connections=400)
    async with httpx2.AsyncClient(headers=headers, timeout=30, limits=limits) as client:
        mix = Mix(client, asks, urls)
        await asyncio.gather(mix.submit(), *(mix.poll(number) for number in range(POLLERS)))
    return {
        "rows_in_table": ROWS,
        "warmup_seconds": WARMUP_SECONDS,
        "seconds": SECONDS,
        "errors": {kind: mix.errors.count(kind) for kind in sorted(set(mix.errors))},
        **{kind: spread(found) for kind, found in sorted(mix.times.items())},
    }


def spread(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    return {
        "requests": len(ordered),
        "median_ms": 1000 * statistics.median(ordered),
        "p99_ms": 1000 * ordered[int(0.99 * (len(ordered) - 1))],
        "highest_ms": 1000 * ordered[-1],
    }


def fill(engine: Engine, statement: str, table: str) -> None:
    with engine.begin() as connection:
        connection.execute(text("SET statement_timeout = 0"))
        connection.execute(text(statement))
    with engine.connect() as connection:
        alone = connection.execution_options(isolation_level="AUTOCOMMIT")
        alone.execute(text(f"VACUUM ANALYZE {table}"))


def ours() -> dict[str, Any]:
    with service(0, SPQ_SUBMISSIONS_PER_MINUTE="1000000") as stack:
        fill(stack.database.engine, FILL_JOBS, "jobs")
        headers = {"Authorization": f"Bearer {stack.key}"}
        return asyncio.run(run(OurClient(), stack.ports, headers))


def mlflow(environment: Path) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="spq-pg-") as folder:
        postgres = PostgresServer(Path(folder))
        try:
            with mlflow_server(environment, f"{postgres.url}/postgres", Path(folder)) as port:
                engine = create_engine(f"{postgres.url}/postgres")
                fill(engine, FILL_RUNS, "runs")
                engine.dispose()
                return asyncio.run(run(MlflowClient(), [port], {}))
        finally:
            postgres.stop()


@contextmanager
def mlflow_server(environment: Path, url: str, folder: Path) -> Iterator[int]:
    port = free_port()
    command = [
        environment / "bin" / "mlflow", "server", "--workers", "2", "--port", str(port),
        "--backend-store-uri", url.replace("+psycopg", "+psycopg2"),
    ]  # fmt: skip
    with (folder / "mlflow.log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=folder, stdout=log, stderr=log, start_new_session=True
        )
    try:
        for _ in range(240):
            try:
                httpx2.get(f"http://127.0.0.1:{port}/health", timeout=2)
                break
            except httpx2.TransportError:
                time.sleep(0.5)
        yield port
    finally:
        process.terminate()
        process.wait(30)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mlflow", type=Path, help="the environment that has MLflow")
    arguments = parser.parse_args()
    record("load", ours())
    if arguments.mlflow:
        record("load_mlflow", mlflow(arguments.mlflow.resolve()))


if __name__ == "__main__":
    main()
