"""Tasks as EleutherAI's lm-evaluation-harness defines and scores them, on models that are loaded already.

Prompts, few-shot examples, filters and metrics are the harness's own: each task is its YAML file, with local questions in the
place of the Hub's. Nothing here reaches a network.
"""

import inspect
import io
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from spq_core.data.tasks import Rows, TaskData, parts_of, read_rows
from spq_core.errors import EvaluationError, SpqError
from spq_core.evaluation.tasks.answers import Answers, TaskAnswers
from spq_core.evaluation.tasks.definitions import OTHER_SPLITS, find_definition, settings_of
from spq_core.evaluation.tasks.prefixes import Answered, SharedPrefixes
from spq_core.machine import machine_failure

BATCH = 8
HEARD_SECONDS = 30.0
SEVERAL_RIGHT = {"truthfulqa_mc2": "mc2_targets"}
"""Tasks with more than one right choice, and where their labels are."""


def put_tasks(
    name: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Mapping[str, TaskData],
    *,
    length: int,
    limit: int | None = None,
    shots: int | None = None,
    answered: Answered | None = None,
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
        answered: likelihoods of this model at this length that are known from other tasks; grows.
        while_busy: called now and then while a task goes on, which may take hours.

    Raises:
        EvaluationError: a task is unknown, or its questions lack what it asks for.
        DatasetError: a file is malformed.
    """
    answers: dict[str, TaskAnswers] = {}
    answered = {} if answered is None else answered
    work = Path(tempfile.mkdtemp(prefix="spq-tasks-"))
    try:
        for task, data in tasks.items():
            parts = write_task(task, data, work)
            with _heard(model, partial(while_busy, f"{task}, {name}")), _said_of(task):
                samples = _samples(model, tokenizer, parts, work, length, limit, shots, answered)
                answers[task] = TaskAnswers(_answers(samples), _chance(task, samples))
            after_task(f"{task}, {name}")
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return answers


def write_task(name: str, data: TaskData, work: Path) -> list[str]:
    """Write a task's definition with local files, part by part; return the parts' names.

    Args:
        work: an existing folder.
    """
    examples = {} if data.examples is None else parts_of(name, read_rows(data.examples))
    questions = parts_of(name, read_rows(data.questions))
    for part, rows in questions.items():
        found = find_definition(part)
        files = {found.split: _rows_file(rows, work / f"{part}.questions.jsonl")}
        if found.examples is not None and part in examples:
            files[found.examples] = _rows_file(examples[part], work / f"{part}.examples.jsonl")
        document = settings_of(found)
        absent = {key: None for key in OTHER_SPLITS if document.get(key) not in files}
        definition = {
            "include": str(found.path), "task": part, "dataset_path": "json", "dataset_name": None,
            "dataset_kwargs": {"data_files": files}, **absent,
        }  # fmt: skip
        (work / f"{part}.yaml").write_text(yaml.safe_dump(definition), encoding="utf-8")
    return list(questions)


def _rows_file(rows: Rows, file: Path) -> str:
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return str(file)


def _samples(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    parts: list[str],
    work: Path,
    length: int,
    limit: int | None,
    shots: int | None,
    answered: Answered,
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
        _share_prefixes(harness_model, model, length, answered)
        manager = TaskManager(include_defaults=False, include_path=str(work))
        results = evaluator.simple_evaluate(
            model=harness_model, tasks=parts, task_manager=manager, limit=limit,
            num_fewshot=shots, bootstrap_iters=0, log_samples=True,
        )  # fmt: skip
    # Numbered through, as each part has its own numbers.
    return [
        sample | {"doc_id": (number, sample["doc_id"])}
        for number, part in enumerate(parts)
        for sample in results["samples"][part]
    ]


def _share_prefixes(
    harness_model: Any, model: PreTrainedModel, length: int, answered: Answered
) -> None:
    """Where the harness asks for likelihoods, answer with what contexts have in common computed once."""
    if "logits_to_keep" not in inspect.signature(model.forward).parameters:
        return
    shared = SharedPrefixes(model, length, harness_model._loglikelihood_tokens, answered)  # noqa: SLF001
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
            f"task {task} cannot be put with these questions to this model ({type(error).__name__}: {error})"[
                :500
            ]
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
    found: dict[str, dict[tuple[int, int], float]] = {}
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
