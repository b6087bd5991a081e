"""The worked pipelines, as a reader of them runs them."""

import os
import subprocess
import sys
from pathlib import Path

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
