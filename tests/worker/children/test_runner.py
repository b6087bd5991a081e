"""The runner as the program that it is."""

import json
import subprocess
import sys

import pytest
from pydantic import TypeAdapter

from spq_core.data.texts import builtin_text
from spq_core.recipe.catalog import resolve
from tests.models import save_tiny
from worker.children.messages import RunSpec, Source

QUESTIONS = [
    {
        "question": f"Which is {one}?",
        "choices": {"text": [f"This is {one}.", "None of it is."], "label": ["A", "B"]},
        "answerKey": "A",
    }
    for one in range(4)
]


def run(spec):
    """What the runner says, and how it ends."""
    done = subprocess.run(
        [sys.executable, "-m", "worker.children.runner"],
        input=spec.model_dump_json() + "\n", capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    return [json.loads(line) for line in done.stdout.splitlines()], done


def spec_of(tmp_path, **evaluation):
    (tmp_path / "data").mkdir()
    (tmp_path / "work").mkdir()
    (tmp_path / "data" / "arc_easy.jsonl").write_text("\n".join(map(json.dumps, QUESTIONS)))
    settings = {"perplexity": [builtin_text().name], "length": 32, "limit": 2, "throughput": False}
    return RunSpec(
        source=Source(folder=str(save_tiny(tmp_path / "source")), name="tiny"),
        recipe=TypeAdapter(dict).validate_json(resolve("int8").model_dump_json()),
        evaluation=settings | evaluation,
        text_folders=(str(tmp_path / "data"),),
        out=str(tmp_path / "work" / "artifact"),
        scratch=str(tmp_path),
        threads=1,
        device="cpu",
    )


def test_tasks_are_put_to_source_and_result(tmp_path):
    said, done = run(spec_of(tmp_path, tasks=["arc_easy"]))
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    rows = {row["name"]: row for row in said[-1]["document"]["rows"]}
    assert rows["source"]["tasks"]["arc_easy"]["questions"] == len(QUESTIONS)
    assert "acc_norm_flips" in rows["result"]["tasks"]["arc_easy"]
    phases = [one["phase"]["title"] for one in said if one["type"] == "progress"]
    assert {"tasks (source)", "tasks (result)"} <= set(phases)


@pytest.mark.extended
def test_tasks_that_need_more_memory_than_there_is_cost_no_other_figure(tmp_path):
    spec = spec_of(tmp_path, tasks=["arc_easy"])
    with_little = (
        "import spq_core.evaluation.measure as m, worker.children.runner as r;"
        "m.fits = lambda _stored: False; from worker.children.protocol import serve;"
        "from worker.children.messages import RunSpec; serve(RunSpec, r.run)"
    )
    done = subprocess.run(
        [sys.executable, "-c", with_little], input=spec.model_dump_json() + "\n",
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    said = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, done.stderr
    assert any("tasks were not put" in one.get("text", "") for one in said)
    rows = said[-1]["document"]["rows"]
    assert all("tasks" not in row and row["perplexity"] > 1 for row in rows)


def test_a_task_that_cannot_be_put_ends_the_run_before_any_work(tmp_path):
    said, done = run(spec_of(tmp_path, tasks=["gsm8k"]))
    assert done.returncode == 1
    assert said[-1]["type"] == "error"
    assert "put gsm8k.jsonl into the folder" in said[-1]["message"]
    assert not (tmp_path / "work" / "artifact").exists()
