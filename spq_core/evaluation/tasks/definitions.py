"""What the installed lm-evaluation-harness knows of a task: its YAML file, read without running what it names. Free of torch."""

import re
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from spq_core.data.tasks import TaskData, parts_of, read_rows
from spq_core.errors import EvaluationError

SPLITS = ("test_split", "validation_split")
OTHER_SPLITS = ("training_split", "fewshot_split", *SPLITS)
TASK_LINE = re.compile(r"^['\"]?task['\"]?[ \t]*:[ \t]*['\"]?([\w.\-]+)['\"]?\s*$", re.MULTILINE)
ANSWERED = frozenset({"multiple_choice", "generate_until", "loglikelihood"})
"""Kinds of tasks that have questions."""


class _Names(yaml.SafeLoader):
    """Reads the harness's files without running what they name."""


_Names.add_multi_constructor("!", lambda _loader, _suffix, _node: None)


@dataclass(frozen=True, slots=True)
class TaskFile:
    """A task of the installed harness."""

    name: str
    path: Path
    split: str
    """Of the questions."""
    examples: str | None
    """The split that few-shot examples come from."""
    shots: int
    """Examples before each question, unless settings say otherwise."""


def require_harness() -> Path:
    """The folder of its tasks.

    Raises:
        EvaluationError: it is not installed.
    """
    try:
        import lm_eval  # noqa: PLC0415 - an extra
    except ImportError:
        raise EvaluationError(
            "tasks need lm-evaluation-harness: pip install -e '.[tasks]' in the checkout"
        ) from None
    return Path(lm_eval.__file__).parent / "tasks"


def harness_version() -> str:
    """Of the installed harness: its rules are part of every figure."""
    return version("lm_eval")


def find_definition(name: str) -> TaskFile:
    """The task of that name.

    Raises:
        EvaluationError: the harness is not installed, or has none, or only a group of that name.
    """
    for path in _files(require_harness()).get(name, ()):
        document = _document(path)
        split = next((document[key] for key in SPLITS if document.get(key)), None)
        if document.get("output_type") not in ANSWERED:
            raise EvaluationError(
                f"task {name} has no questions with answers ({document.get('output_type')}); "
                "perplexity of texts is measured with evaluation.perplexity"
            )
        if split is not None:
            return TaskFile(
                name, path, split,
                document.get("fewshot_split") or document.get("training_split"),
                document.get("num_fewshot") or 0,
            )  # fmt: skip
    raise EvaluationError(
        f"the installed lm-evaluation-harness has no task {name!r}; groups of tasks are named one by one"
    )


def check_task(name: str, data: TaskData, shots: int | None) -> None:
    """Find out before hours of work whether a task can be put at all.

    Args:
        shots: few-shot examples; None for as many as the task says.

    Raises:
        EvaluationError: the harness does not know it, or there are too few examples.
        DatasetError: a file is malformed.
    """
    examples = {} if data.examples is None else parts_of(name, read_rows(data.examples))
    for part in parts_of(name, read_rows(data.questions)):
        found = find_definition(part)
        wanted = found.shots if shots is None else shots
        count = len(examples.get(part, ()))
        if wanted > count:
            raise EvaluationError(
                f"task {part} shows {wanted} examples before each question, and its data folder has {count}; put "
                f"{data.questions.stem}-train.jsonl there, or set fewshot to {count}"
            )


@cache
def _files(folder: Path) -> dict[str, list[Path]]:
    """Files of all tasks by name; there are more than ten thousand."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*.yaml")):
        for name in TASK_LINE.findall(path.read_text(encoding="utf-8", errors="replace")):
            found.setdefault(name, []).append(path)
    return found


def _document(path: Path) -> dict[str, Any]:
    """A task's settings, with what it includes."""
    document: dict[str, Any] = yaml.load(path.read_text(encoding="utf-8"), _Names)  # noqa: S506 - a safe loader
    included = document.pop("include", None)
    names = included if isinstance(included, list) else [included] if included else []
    merged: dict[str, Any] = {}
    for name in names:
        merged |= _document(path.parent / name)
    return {**merged, **document}


def settings_of(task: TaskFile) -> dict[str, Any]:
    """A task's settings, with what it includes."""
    return _document(task.path)
