"""Whether our figures of tasks are those of lm-evaluation-harness's own command line, question by question.

    python benchmarks/harness.py FOLDER... [--limit 40] [--generated 4]

FOLDERs are models that stock transformers loads: the source, and an artifact of a portable recipe. The command line runs in a
process of its own, without anything of ours but the questions; its record of each question is compared with ours. Results go
into results/harness.json.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from spq_core.data.tasks import find_task
from spq_core.evaluation.tasks.harness import put_tasks, write_task

RESULTS = Path(__file__).parent / "results" / "harness.json"
DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
CHOICES, FREE = ("truthfulqa_mc1", "truthfulqa_mc2"), ("gsm8k",)
LENGTH = 2048


def theirs(folder: Path, tasks: tuple[str, ...], limit: int, work: Path) -> dict[str, Any]:
    """Each question's figures, by the harness's command line."""
    definitions, out = work / "tasks", work / "out"
    definitions.mkdir(parents=True)
    for task in tasks:
        write_task(task, find_task(task, [DATA]), definitions)
    command = [
        sys.executable, "-m", "lm_eval", "--model", "hf",
        "--model_args", f"pretrained={folder},dtype=float32,max_length={LENGTH}",
        "--tasks", ",".join(tasks), "--include_path", str(definitions), "--limit", str(limit),
        "--device", "cpu", "--batch_size", "8", "--output_path", str(out), "--log_samples",
    ]  # fmt: skip
    offline = os.environ | {"HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1"}
    subprocess.run(command, check=True, env=offline, cwd=work)
    found: dict[str, Any] = {}
    for task in tasks:
        (file,) = out.rglob(f"samples_{task}_*.jsonl")
        for line in file.read_text(encoding="utf-8").splitlines():
            sample = json.loads(line)
            for metric in sample["metrics"]:
                name = metric if sample["filter"] == "none" else f"{metric}_{sample['filter']}"
                values = found.setdefault(task, {}).setdefault(name, {})
                values[sample["doc_id"]] = float(sample[metric])
    return found


def ours(folder: Path, tasks: tuple[str, ...], limit: int) -> dict[str, Any]:
    """The same, by us."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    files = {task: find_task(task, [DATA]) for task in tasks}
    tokenizer = AutoTokenizer.from_pretrained(folder)
    answers = put_tasks("model", model, tokenizer, files, length=LENGTH, limit=limit)
    return {task: given.answers for task, given in answers.items()}


def compared(folder: Path, tasks: tuple[str, ...], limit: int) -> dict[str, Any]:
    """By task and figure: both means, and the largest difference of a question."""
    with tempfile.TemporaryDirectory(prefix="spq-harness-") as work:
        other = theirs(folder.resolve(), tasks, limit, Path(work))
    own = ours(folder, tasks, limit)
    report: dict[str, Any] = {}
    for task, figures in other.items():
        for name, values in figures.items():
            mine = own[task][name]
            pairs = list(zip(mine, [values[key] for key in sorted(values)], strict=True))
            report[f"{task}.{name}"] = {
                "questions": len(pairs), "ours": sum(mine) / len(pairs),
                "theirs": sum(values.values()) / len(pairs),
                "largest_difference": max(abs(one - two) for one, two in pairs),
            }  # fmt: skip
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--limit", type=int, default=40)
    parser.add_argument("--generated", type=int, default=4)
    asked = parser.parse_args()
    report = {
        folder.name: compared(folder, CHOICES, asked.limit)
        | compared(folder, FREE, asked.generated)
        for folder in asked.folders
    }
    print(json.dumps(report, indent=1))
    RESULTS.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
