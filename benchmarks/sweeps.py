"""The shipped sweeps on SmolLM2-135M through the service with two workers, and what sharing saves.

    python benchmarks/sweeps.py single-methods baselines orders joint frontier ranks double
    python benchmarks/sweeps.py --sharing        # frontier once as it is, once with every member by itself

Postgres, Valkey, one API process and two workers of one thread each, all on this machine. Results go into
results/sweeps/<name>.json, .csv and .md, and results/sweeps/fronts.svg draws all that are there.
"""

import argparse
import csv
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl

from app.client.http import Client
from app.db.keys import SCOPES, create_key
from app.db.migrate import upgrade
from app.db.session import connect
from benchmarks.model import smollm2
from spq_core.sweep.document import shipped_sweep
from spq_core.sweep.figure import draw_front
from spq_core.sweep.tables import sweep_table, write_table
from tests.servers import free_port, postgres
from worker.standalone.broker import embedded_broker

mpl.use("agg")
RESULTS = Path(__file__).parent / "results" / "sweeps"
DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
NAMES = ("single-methods", "baselines", "orders", "joint", "frontier", "ranks", "double")
ENDED = {"finished", "failed", "canceled"}
WORKERS = 2


@contextmanager
def service() -> Iterator[Client]:
    """A whole deployment, gone at the end."""
    port = free_port()
    with ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="spq-sweeps-")))
        database_url = f"{stack.enter_context(postgres())}/postgres"
        upgrade(database_url)
        with connect(database_url).write() as session:
            _, key = create_key(session, name="b", tenant="b", scopes=SCOPES, days=None)
        environment = os.environ | {
            "SPQ_DATABASE_URL": database_url,
            "SPQ_BROKER_URL": stack.enter_context(embedded_broker(root)),
            "SPQ_ARTIFACT_DIR": str(root / "artifacts"), "SPQ_SCRATCH_DIR": str(root / "scratch"),
            "SPQ_MODEL_DIRS": str(smollm2().parent), "SPQ_DATA_DIR": str(DATA),
            "SPQ_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE",
        }  # fmt: skip
        for name, *arguments in (
            ("api", "api", "--port", str(port)),
            *((f"worker{at}", "worker", "--name", f"worker{at}@bench") for at in range(WORKERS)),
        ):
            log = stack.enter_context((root / f"{name}.log").open("wb"))
            process = subprocess.Popen(
                [sys.executable, "-m", "worker.cli", *arguments],
                env=environment, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
            stack.callback(os.killpg, process.pid, signal.SIGKILL)
        yield Client(f"http://127.0.0.1:{port}", key)


def run(
    client: Client, name: str, windows: int, *, reuse: bool = True, keep: str | None = None
) -> dict[str, Any]:
    """Submit a sweep, and follow it to its end."""
    document = shipped_sweep(name).model_dump(mode="json", exclude_unset=True)
    body = {
        "model": {"path": smollm2().name}, "sweep": document | ({"keep": keep} if keep else {}),
        "max_parallel": WORKERS,
        "evaluation": {"perplexity": ["wikitext2"], "limit": windows, "reuse": reuse},
    }  # fmt: skip
    client.patient("GET", "/sweeps")
    begun = time.monotonic()
    sweep = client.call("POST", "/sweeps", body)
    version = 0
    while sweep["status"] not in ENDED:
        time.sleep(5)
        sweep = client.patient("GET", f"/sweeps/{sweep['id']}")
        if sweep["version"] != version:
            version = sweep["version"]
            print(name, f"{time.monotonic() - begun:.0f} s", sweep["counts"], flush=True)
    return sweep | {"wall_seconds": round(time.monotonic() - begun, 1)}


def record(name: str, sweep: dict[str, Any]) -> None:
    """Keep what was measured, and show it."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    for one in (
        "id",
        "urls",
        "labels",
        "version",
        "waits_for",
        "estimated_finish_at",
        "max_parallel",
    ):
        sweep.pop(one)
    for member in sweep["members"]:
        member.pop("job_id")
    (RESULTS / f"{name}.json").write_text(json.dumps(sweep, indent=1) + "\n", encoding="utf-8")
    (RESULTS / f"{name}.md").write_text(sweep_table(sweep) + "\n", encoding="utf-8")
    with (RESULTS / f"{name}.csv").open("w", encoding="utf-8", newline="") as content:
        write_table(sweep, csv.writer(content, lineterminator="\n"))
    print(sweep_table(sweep), flush=True)


def sharing(windows: int) -> None:
    """Wall time of the sweep over sizes with and without what members share; the artifacts must have the same digests."""
    found: dict[str, Any] = {}
    digests: dict[str, Any] = {}
    for kind, reuse in (("shared", True), ("alone", False)):
        with service() as client:
            sweep = run(client, "frontier", windows, reuse=reuse, keep="all")
            found[f"{kind}_seconds"] = sweep["wall_seconds"]
            digests[kind] = [_files(client, one["job_id"]) for one in sweep["members"]]
    found |= {
        "times_less": found["alone_seconds"] / found["shared_seconds"],
        "same_artifacts": digests["shared"] == digests["alone"], "windows": windows,
    }  # fmt: skip
    print(json.dumps(found), flush=True)
    (RESULTS / "sharing.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def _files(client: Client, job_id: str) -> dict[str, str]:
    listed = client.call("GET", f"/jobs/{job_id}/artifacts")["data"]
    return {one["path"]: one["sha256"] for one in listed if one["path"] != "README.md"}


def draw() -> None:
    """All fronts in one picture: KL against bytes on disk, members on the front filled."""
    from matplotlib import pyplot as plt

    known = [name for name in NAMES if (RESULTS / f"{name}.json").is_file()]
    figure, axes = plt.subplots(1, len(known), figsize=(4.6 * len(known), 4.4), squeeze=False)
    for axis, name in zip(axes[0], known, strict=True):
        sweep = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
        draw_front(axis, sweep)
    figure.tight_layout()
    figure.savefig(RESULTS / "fronts.svg")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*NAMES, []])
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--sharing", action="store_true")
    asked = parser.parse_args()
    RESULTS.mkdir(parents=True, exist_ok=True)
    for name in asked.names:
        with service() as client:
            record(name, run(client, name, asked.windows))
        draw()
    if asked.sharing:
        sharing(asked.windows)


if __name__ == "__main__":
    main()
