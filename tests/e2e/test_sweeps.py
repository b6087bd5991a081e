"""A sweep through every real part, with two workers, and through the command line."""

import json
import subprocess
import sys

import pytest
from sqlalchemy import select

from app.db.models import JobEvent
from tests.e2e.conftest import wait_until

ENDED = {"finished", "failed", "canceled"}
CALIBRATION = {"dataset": "builtin", "form": "windows", "samples": 4, "length": 32}
SIZES = {
    "name": "sizes",
    "keep": "all",
    "recipes": ["int8"],
    "grid": [
        {
            "base": {"extends": "small", "calibration": CALIBRATION},
            "over": {"target.bytes_ratio": [0.6, 0.5]},
        }
    ],
}
EVALUATION = {"perplexity": ["builtin"], "length": 32, "limit": 8}


def submit(stack, document=SIZES, **changes):
    body = {
        "model": {"repo_id": "org/tiny"}, "sweep": document, "evaluation": EVALUATION, "max_parallel": 2,
    }  # fmt: skip
    return stack.client.call("POST", "/sweeps", body | changes)


def finish(stack, sweep, seconds=240):
    url = f"/sweeps/{sweep['id']}"
    wait_until(
        lambda: stack.client.call("GET", url)["status"] in ENDED,
        seconds,
        f"the end of {sweep['id']}",
    )
    return stack.client.call("GET", url)


def files(stack, job_id):
    listed = stack.client.call("GET", f"/jobs/{job_id}/artifacts")["data"]
    return {one["path"]: one["sha256"] for one in listed if one["path"] != "README.md"}


def test_two_workers_make_a_sweep_and_measure_the_source_once(stack):
    stack.start_worker("second")
    done = finish(stack, submit(stack))
    assert done["counts"] == {"succeeded": 3}, done
    assert done["source_commit"]
    rows = [one["row"] for one in done["members"]]
    assert all(row["kl"] >= 0 for row in rows)
    assert done["best"] in done["front"]
    jobs = [stack.job(one["job_id"]) for one in done["members"]]
    anew = [job for job in jobs if "origin" not in job["result"]["rows"][0]]
    assert [job["sweep_member"] for job in anew] == [1], "all others knew the source's figures"
    with stack.database.read() as session:
        events = session.scalars(select(JobEvent).where(JobEvent.type == "status"))
        workers = {one.data["worker_id"] for one in events if "worker_id" in one.data}
    assert len(workers) == 2
    alone = stack.finish(
        stack.submit(recipe=jobs[2]["recipe"], evaluation=jobs[2]["request"]["evaluation"] | {"reuse": False})
    )  # fmt: skip
    assert files(stack, alone["id"]) == files(stack, jobs[2]["id"]), "sharing changes no byte"
    figures = alone["result"]["rows"][-1]
    assert {name: rows[2][name] for name in figures} == figures
    assert rows[2]["theoretical_rate"] == alone["result"]["compression"]["theoretical_rate"]
    wait_until(stack.nothing_left, 10, "an empty scratch folder")


@pytest.mark.extended
def test_a_killed_worker_loses_no_member(stack):
    stack.start_worker("second")
    sweep = submit(stack, SIZES | {"recipes": []}, evaluation=EVALUATION | {"reuse": False})
    url = f"/sweeps/{sweep['id']}"
    wait_until(
        lambda: stack.client.call("GET", url)["counts"].get("succeeded"), 120, "a first member"
    )
    stack.kill("worker")
    stack.kill("api")
    stack.start("api", "api", "--port", stack.client.url.rpartition(":")[2])
    wait_until(lambda: stack.client.patient("GET", url), 60, "the API")
    done = finish(stack, sweep)
    assert done["counts"] == {"succeeded": 2}, done
    assert len({one["job_id"] for one in done["members"]}) == 2


def spq(stack, *arguments):
    command = [sys.executable, "-m", "worker.cli", "sweeps", "--url", stack.client.url, *arguments]
    environment = stack.environment | {"SPQ_API_KEY": stack.client.key}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


@pytest.mark.extended
def test_a_sweep_through_the_command_line(stack, tmp_path):
    document = tmp_path / "sizes.yaml"
    limits = {"minimize": "kl", "subject_to": {"bytes_ratio": {"max": 0.28}}}
    document.write_text(json.dumps(SIZES | {"keep": "front", "objective": limits}))
    chosen = ("org/tiny", str(document), "--dataset", "builtin", "--windows", "8", "--length", "32")
    plan = spq(stack, "submit", *chosen, "--dry-run")
    assert plan.returncode == 0, plan.stderr
    assert "skipped, too large by its estimate" in plan.stdout
    done = spq(stack, "submit", *chosen, "--publish", "me/best", "--watch")
    assert done.returncode == 0, done.stderr
    assert "published as me/best" in done.stdout
    assert "Lowest kl with bytes_ratio at most 0.28: member" in done.stdout
    assert "A try, not a result" in done.stdout
    sweep_id = done.stderr.splitlines()[0]
    listed = spq(stack, "list").stdout
    assert sweep_id in listed
    assert "1 succeeded" in listed
    assert spq(stack, "csv", sweep_id).stdout.splitlines()[0].startswith("number,recipe")
    assert json.loads(spq(stack, "show", sweep_id, "--json").stdout)["status"] == "finished"
    assert spq(stack, "cancel", sweep_id).stdout.strip() == "finished"
    picture, folder = tmp_path / "front.svg", tmp_path / "best"
    assert spq(stack, "figure", sweep_id, "--out", str(picture)).returncode == 0
    assert "<!-- 0.5 -->" in picture.read_text()
    got = spq(stack, "download", sweep_id, "--out", str(folder))
    assert got.returncode == 0, got.stderr
    assert (folder / "compression_manifest.json").is_file()
    more = spq(stack, "change", sweep_id, "--add", "int8")
    assert (more.returncode, "members already" in more.stderr) == (5, True)
    again = spq(stack, "retry", sweep_id)
    assert (again.returncode, "sweep_not_retryable" in again.stderr) == (5, True)
    hopeless = tmp_path / "hopeless.yaml"
    hopeless.write_text(json.dumps({"recipes": ["int8"], "objective": {"minimize": "kl", "subject_to": {"kl": {"max": 0}}}}))  # fmt: skip
    none = spq(stack, "submit", chosen[0], str(hopeless), *chosen[2:], "--watch", "--json")
    assert none.returncode == 7, none.stderr
    assert json.loads(none.stdout)["best"] is None
    assert spq(stack, "delete", sweep_id).returncode == 0
    assert spq(stack, "show", sweep_id).returncode == 5
