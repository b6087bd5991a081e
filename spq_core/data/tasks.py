"""Questions of tasks, from local files. Free of torch.

    <task>.jsonl           questions, one JSON object a line, with the fields that the task's dataset has on the Hub
    <task>-train.jsonl     examples with answers, for tasks that show some first

A .json file with a list will do, and `-test` or `-validation` behind the name. Both parts of TruthfulQA's multiple choice
are in `truthfulqa`; its targets may be a mapping from choice to label, as the authors published them. `mmlu` has the questions of all
subjects, each with its `subject`.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from spq_core.errors import DatasetError

FILES = {"truthfulqa_mc1": "truthfulqa", "truthfulqa_mc2": "truthfulqa"}
"""Tasks whose file is called otherwise."""
PARTS = {"mmlu": "subject"}
"""Tasks that the harness knows in parts, and the field of a question that says which it is of."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_\-]{0,63}")
QUESTIONS = ("", "-test", "-validation", "-mc")
EXAMPLES = ("-train", "-train-*", "-dev")
SUFFIXES = (".jsonl", ".json")
TARGETS = ("mc1_targets", "mc2_targets")
LARGEST_FILE = 256 << 20
Rows = list[dict[str, Any]]


class TaskData(NamedTuple):
    """A task's files."""

    questions: Path
    examples: Path | None

    def digest(self) -> str:
        """Of both files' contents."""
        files = [self.questions, *([] if self.examples is None else [self.examples])]
        return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def find_task(name: str, folders: Iterable[Path]) -> TaskData:
    """The files of a task in the first folder that has its questions.

    Raises:
        DatasetError: naming the files looked for.
    """
    if not NAME.fullmatch(name):
        raise DatasetError(f"{name!r} is not the name of a task")
    stem = FILES.get(name, name)
    for folder in folders:
        questions = _first(folder, stem, QUESTIONS)
        if questions is not None:
            return TaskData(questions, _first(folder, stem, EXAMPLES))
    raise DatasetError(
        f"task {name!r}: no data folder has its questions; put {stem}.jsonl into the folder that SPQ_DATA_DIR "
        "(or --data-dir) names"
    )


def read_rows(path: Path) -> Rows:
    """The objects of a file.

    Raises:
        DatasetError: it is no list of objects.
    """
    if path.stat().st_size > LARGEST_FILE:
        raise DatasetError(f"{path.name} is larger than {LARGEST_FILE >> 20} MiB")
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix == ".json":
            rows = json.loads(text)
        else:  # at line feeds only: JSON may hold other characters that end a line
            rows = [json.loads(line) for line in text.split("\n") if line.strip()]
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{path.name} is not JSON: {error}") from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows) or not rows:
        raise DatasetError(f"{path.name} holds no questions: it must be a list of objects")
    return [_with_lists(row) for row in rows]


def parts_of(name: str, rows: Rows) -> dict[str, Rows]:
    """A task's rows by the name that the harness has for each part; one part for most tasks.

    Raises:
        DatasetError: a row does not say which part it is of.
    """
    field = PARTS.get(name)
    if field is None:
        return {name: rows}
    found: dict[str, Rows] = {}
    for row in rows:
        part = row.get(field)
        if not isinstance(part, str) or not NAME.fullmatch(f"{name}_{part}"):
            raise DatasetError(f"task {name}: a question has no {field}: {str(row)[:100]}")
        found.setdefault(f"{name}_{part}", []).append(row)
    return dict(sorted(found.items()))


def _with_lists(row: Mapping[str, Any]) -> dict[str, Any]:
    """Targets as lists of choices and labels, as the Hub's dataset has them."""
    changed = {
        name: {"choices": list(row[name]), "labels": list(row[name].values())}
        for name in TARGETS
        if isinstance(row.get(name), dict) and "choices" not in row[name]
    }
    return {**row, **changed}


def _first(folder: Path, stem: str, endings: Iterable[str]) -> Path | None:
    for ending in endings:
        for suffix in SUFFIXES:
            for path in sorted(folder.glob(f"{stem}{ending}{suffix}")):
                if path.is_file():
                    return path
    return None
