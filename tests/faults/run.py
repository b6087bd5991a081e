"""Schedules one after another: `python -m tests.faults.run --schedules 10 [--seed 1]`."""

import argparse
import json
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from sqlalchemy import select

from app.db.models import Job
from tests.faults.checker import violations, wait_for_the_end
from tests.faults.schedule import run_schedule
from tests.faults.stack import Deployment, deployment, skewed_clock
from tests.models import save_tiny

EVALUATION = {"perplexity": ["builtin"], "length": 64, "limit": 2, "trials": 1, "new_tokens": 4}
PAPER = {"extends": "spq-paper", "calibration": {"dataset": "builtin", "samples": 3, "length": 32}}
END_SECONDS = 240.0


def submit(stack: Deployment, seed: int, number: int) -> tuple[str, str]:
    """Submit one job twice, as a client that lost the first answer; return its key and id."""
    key = f"schedule-{seed}-{number}"
    body = {
        "model": {"repo_id": "org/tiny"},
        "recipe": "int8" if number % 2 else PAPER,
        "evaluation": EVALUATION,
        "output": {"repo_id": f"me/out-{seed}-{number}"},
        "webhook": {"url": stack.endpoint.url},
    }
    answers = [
        stack.ask("POST", "/jobs", json=body, headers={"Idempotency-Key": key}) for _ in range(2)
    ]
    ids = {answer.json()["id"] for answer in answers}
    assert len(ids) == 1, answers
    return key, ids.pop()


def one_schedule(seed: int, jobs: int, faults: int, pause: float, root: Path) -> dict[str, Any]:
    """Run a schedule on a deployment of its own; return what happened."""
    model = save_tiny(root / "model")
    begun = time.monotonic()
    with deployment(root / "stack", model) as stack:
        submitted = dict(submit(stack, seed, number) for number in range(jobs))
        happened = run_schedule(stack, seed, faults, pause)
        settled = wait_for_the_end(stack, END_SECONDS)
        broken = violations(stack, submitted)
        with stack.database.read() as session:
            rows = list(session.execute(select(Job.status, Job.attempt, Job.error)))
    return {
        "seed": seed,
        "faults": happened,
        "violations": broken,
        "statuses": dict(Counter(str(status) for status, _, _ in rows)),
        "errors": dict(Counter(error["code"] for _, _, error in rows if error)),
        "attempts": sum(attempt for _, attempt, _ in rows),
        "clocks": "skewed" if skewed_clock("+0") else "right",
        "settled_seconds": round(settled, 1),
        "seconds": round(time.monotonic() - begun, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--schedules", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=6)
    parser.add_argument("--faults", type=int, default=8)
    parser.add_argument("--pause", type=float, default=4.0)
    options = parser.parse_args()
    failed = 0
    for seed in range(options.seed, options.seed + options.schedules):
        with tempfile.TemporaryDirectory(prefix="spq-faults-") as folder:
            root = Path(folder)
            (root / "stack").mkdir()
            outcome = one_schedule(seed, options.jobs, options.faults, options.pause, root)
        failed += bool(outcome["violations"])
        print(json.dumps(outcome), flush=True)
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
