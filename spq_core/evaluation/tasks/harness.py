"""Tasks as EleutherAI's lm-evaluation-harness defines and scores them, on models that are loaded already.

Prompts, few-shot examples, filters and metrics are the harness's own: each task is its YAML file, with local questions in the
place of the Hub's. Nothing here reaches a network.
"""

import inspect
import io
import json
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from spq_core.data.tasks import TaskData, read_rows
from spq_core.errors import EvaluationError, SpqError
from spq_core.evaluation.tasks.answers import Answers, TaskAnswers
from spq_core.evaluation.tasks.prefixes import SharedPrefixes
from spq_core.machine import machine_failure

BATCH = 8
HEARD_SECONDS = 30.0
SEVERAL_RIGHT = {"truthfulqa_mc2": "mc2_targets"}
"""Tasks with more than one right choice, and where their labels are."""
SPLITS = ("test_split", "validation_split")
OTHER_SPLITS = ("training_split", "fewshot_split", *SPLITS)
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
    wanted = re.compile(rf"^['\"]?task['\"]?\s*:\s*['\"]?{re.escape(name)}['\"]?\s*$", re.MULTILINE)
    for path in sorted(require_harness().rglob("*.yaml")):
        if wanted.search(path.read_text(encoding="utf-8", errors="replace")):
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
    found = find_definition(name)
    read_rows(data.questions)
    wanted = found.shots if shots is None else shots
    count = 0 if data.examples is None else len(read_rows(data.examples))
    if wanted > count:
        raise EvaluationError(
            f"task {name} shows {wanted} examples before each question, and its data folder has {count}; put "
            f"{data.questions.stem}-train.jsonl there, or set fewshot to {count}"
        )


def _document(path: Path) -> dict[str, Any]:
    """A task's settings, with what it includes."""
    document: dict[str, Any] = yaml.load(path.read_text(encoding="utf-8"), _Names)  # noqa: S506 - a safe loader
    included = document.pop("include", None)
    names = included if isinstance(included, list) else [included] if included else []
    merged: dict[str, Any] = {}
    for name in names:
        merged |= _document(path.parent / name)
    return {**merged, **document}


def put_tasks(
    name: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Mapping[str, TaskData],
    *,
    length: int,
    limit: int | None = None,
    shots: int | None = None,
    after_task: Callable[[str], None] = lambda _message: None,
    while_busy: Callable[[str], None] = lambda _message: None,
) -> dict[str, TaskAnswers]:
    """Put tasks to a model.

    Args:
        name: of the model, in messages.
        tasks: name → files.
        length: tokens of context at most.
        limit: questions of a task; None for all.
        shots: few-shot examples; by default as many as the task says.
        while_busy: called now and then while a task goes on, which may take hours.

    Raises:
        EvaluationError: a task is unknown, or its questions lack what it asks for.
        DatasetError: a file is malformed.
    """
    answers: dict[str, TaskAnswers] = {}
    work = Path(tempfile.mkdtemp(prefix="spq-tasks-"))
    try:
        _write_tasks(tasks, work)
        for task in tasks:
            with _heard(model, partial(while_busy, f"{task}, {name}")), _said_of(task):
                samples = _samples(model, tokenizer, task, work, length, limit, shots)
                answers[task] = TaskAnswers(_answers(samples), _chance(task, samples))
            after_task(f"{task}, {name}")
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return answers


def _write_tasks(tasks: Mapping[str, TaskData], work: Path) -> None:
    for name, data in tasks.items():
        found = find_definition(name)
        files = {found.split: _rows_file(data.questions, work)}
        if found.examples is not None and data.examples is not None:
            files[found.examples] = _rows_file(data.examples, work)
        document = _document(found.path)
        absent = {key: None for key in OTHER_SPLITS if document.get(key) not in files}
        definition = {
            "include": str(found.path), "task": name, "dataset_path": "json", "dataset_name": None,
            "dataset_kwargs": {"data_files": files}, **absent,
        }  # fmt: skip
        (work / f"{name}.yaml").write_text(yaml.safe_dump(definition), encoding="utf-8")


def _rows_file(path: Path, work: Path) -> str:
    rows = work / f"{path.stem}.jsonl"
    rows.write_text("\n".join(map(json.dumps, read_rows(path))), encoding="utf-8")
    return str(rows)


def _samples(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: str,
    work: Path,
    length: int,
    limit: int | None,
    shots: int | None,
) -> list[dict[str, Any]]:
    """The harness's record of each question."""
    import datasets  # noqa: PLC0415 - an extra
    from lm_eval import evaluator  # noqa: PLC0415
    from lm_eval.models.huggingface import HFLM  # noqa: PLC0415
    from lm_eval.tasks import TaskManager  # noqa: PLC0415

    datasets.config.HF_DATASETS_OFFLINE = True
    # Its bars and warnings are not for our logs; errors are raised.
    quiet = redirect_stderr(io.StringIO())
    with _own_cache(datasets, work), _ties_kept(model), _machine_unasked(evaluator), quiet:
        harness_model = HFLM(
            pretrained=model,
            backend="causal",
            tokenizer=tokenizer,
            batch_size=BATCH,
            max_length=length,
        )
        _share_prefixes(harness_model, model, length)
        manager = TaskManager(include_defaults=False, include_path=str(work))
        results = evaluator.simple_evaluate(
            model=harness_model, tasks=[task], task_manager=manager, limit=limit,
            num_fewshot=shots, bootstrap_iters=0, log_samples=True,
        )  # fmt: skip
    samples: list[dict[str, Any]] = results["samples"][task]
    return samples


def _share_prefixes(harness_model: Any, model: PreTrainedModel, length: int) -> None:
    """Where the harness asks for likelihoods, answer with what contexts have in common computed once."""
    if "logits_to_keep" not in inspect.signature(model.forward).parameters:
        return
    shared = SharedPrefixes(model, length, harness_model._loglikelihood_tokens)  # noqa: SLF001
    harness_model._loglikelihood_tokens = shared.answer  # noqa: SLF001


@contextmanager
def _said_of(task: str) -> Iterator[None]:
    """The harness's errors are of every kind; those of the machine stay what they are."""
    try:
        yield
    except Exception as error:
        if isinstance(error, SpqError) or machine_failure(error) is not None:
            raise
        raise EvaluationError(
            f"task {task}: its questions do not fit it ({type(error).__name__}: {error})"[:500]
        ) from None


class _StoppedError(BaseException):
    """Carries what whoever is told raised, to stop the run, through the harness: it is no error of a task."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


@contextmanager
def _heard(model: PreTrainedModel, tell: Callable[[], None]) -> Iterator[None]:
    """Tell now and then that the model is at work: a run that is silent for an hour is taken for dead."""
    last = time.monotonic()

    def after_call(*_arguments: object) -> None:
        nonlocal last
        if time.monotonic() - last >= HEARD_SECONDS:
            last = time.monotonic()
            try:
                tell()
            except Exception as error:  # noqa: BLE001  it is raised again outside of the harness
                raise _StoppedError(error) from None

    handle = model.register_forward_hook(after_call)
    try:
        yield
    except _StoppedError as stopped:
        raise stopped.error from None
    finally:
        handle.remove()


@contextmanager
def _own_cache(datasets: Any, work: Path) -> Iterator[None]:
    """Tables that `datasets` makes of files go where they are removed."""
    before = datasets.config.HF_DATASETS_CACHE
    datasets.config.HF_DATASETS_CACHE = work / "cache"
    try:
        yield
    finally:
        datasets.config.HF_DATASETS_CACHE = before


@contextmanager
def _machine_unasked(evaluator: Any) -> Iterator[None]:
    """The harness starts git and other programs to describe the machine; none of that is used, and they write on stderr."""
    asked = evaluator.get_git_commit_hash, evaluator.add_env_info
    evaluator.get_git_commit_hash, evaluator.add_env_info = lambda: None, lambda _results: None
    try:
        yield
    finally:
        evaluator.get_git_commit_hash, evaluator.add_env_info = asked


@contextmanager
def _ties_kept(model: PreTrainedModel) -> Iterator[None]:
    """The harness ties weights again, which would undo a head that is stored apart."""
    model.tie_weights = lambda *_arguments, **_named: None
    try:
        yield
    finally:
        del model.tie_weights


def _answers(samples: list[dict[str, Any]]) -> Answers:
    """Values by figure; a task with several filters has a record of each question for each of them."""
    filters = {sample["filter"] for sample in samples}
    found: dict[str, dict[int, float]] = {}
    for sample in samples:
        for metric in sample["metrics"]:
            name = metric if len(filters) == 1 else f"{metric}_{sample['filter']}"
            found.setdefault(name, {})[sample["doc_id"]] = float(sample[metric])
    return {name: [values[key] for key in sorted(values)] for name, values in found.items()}


def _chance(task: str, samples: list[dict[str, Any]]) -> float:
    """What guessing gives: the mean share of a right choice; 0 for free answers."""
    shares = []
    for sample in samples:
        choices = len(sample["arguments"])
        right = 1
        if task in SEVERAL_RIGHT:
            right = sum(sample["doc"][SEVERAL_RIGHT[task]]["labels"])
        shares.append(right / choices if choices > 1 else 0.0)
    return sum(shares) / len(shares)
