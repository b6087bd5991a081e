"""Measure models side by side: bytes, quality, tasks and speed from one process and one set of settings.

Models are measured one after the other. Only speeds are taken of all at once, in their stored form, as the machine's own
drift would be taken for a difference; where memory does not allow that, there are none.
"""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from spq_core.artifact.read import load_model
from spq_core.data.tasks import TaskData, find_task
from spq_core.data.texts import Text, paper_text
from spq_core.data.windows import consecutive_windows, first_tokens
from spq_core.errors import DatasetError, EvaluationError
from spq_core.evaluation.candidate import Candidate, at
from spq_core.evaluation.comparable import common_tokenizer, require_whole
from spq_core.evaluation.gguf import SUFFIX, require_gguf_reader
from spq_core.evaluation.known import Known, versions
from spq_core.evaluation.loading import LoadFigures, widen
from spq_core.evaluation.quality import Quality, Scores
from spq_core.evaluation.scoring import Scoring
from spq_core.evaluation.settings import EvaluationSettings
from spq_core.evaluation.speeds import LoadedFigures, file_bytes, fits, load_and_time
from spq_core.evaluation.tasks.answers import TaskAnswers, TaskFigures, compared_answers
from spq_core.evaluation.tasks.definitions import check_task, harness_version
from spq_core.evaluation.tasks.harness import put_tasks
from spq_core.evaluation.tasks.prefixes import Answered
from spq_core.evaluation.throughput import Throughput
from spq_core.evaluation.windows import fewest_positions, fitting, window_length
from spq_core.memory import peak_rss_bytes
from spq_core.models.tokenizer import opening_tokens, require_rows
from spq_core.progress import Phase, PhaseKind, Progress

PAPER_TOKENS = 512
TASK_LENGTH = 2048
WIDENED = 2
"""How much larger a model is in float32 than in 16 bits."""
PAPER = "the first tokens"
"""Under this name the paper's one window is scored like a text."""
NO_TASKS: Mapping[str, TaskData] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFigures:
    """All figures of one model."""

    load: LoadFigures
    quality: dict[str, Quality]
    """By dataset."""
    ppl_paper: float | None
    """The SPQ paper's figure: one window of at most 512 tokens. Noisy; for comparison only."""
    throughput: Throughput | None
    tasks: dict[str, TaskFigures] = field(default_factory=dict)
    """By name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One comparison."""

    models: dict[str, ModelFigures]
    settings: dict[str, Any]
    """Everything needed to repeat it: window length, stride, dtypes, device, threads, texts."""
    peak_rss_bytes: int
    """Highest resident memory of the process until the last figure."""


def measure(
    models: Mapping[str, Path | Candidate],
    texts: Mapping[str, Text],
    settings: EvaluationSettings,
    progress: Progress,
    *,
    reference: str | None,
    device: str = "cpu",
    tasks: Mapping[str, TaskData] = NO_TASKS,
    known: Known | None = None,
) -> Measurement:
    """Load and time models in their stored dtype, score them on texts, and put tasks to them.

    Scoring runs in float32 on a CPU; on a GPU in the stored dtype, and the head in float32.

    Args:
        models: name → model folder; all but the first may be GGUF files.
        texts: dataset name → text, one per `settings.perplexity`.
        reference: whose distribution the others are compared with; one of `models`, or None.
        device: `cpu` or a CUDA device; see `choose_device`.
        tasks: files of each of `settings.tasks`.
        known: figures from before, and where to keep those that are measured now.

    Raises:
        EvaluationError: a model has fewer positions than the settings need, cannot be loaded here,
            or has another vocabulary than the reference.
    """
    candidates = {
        name: model if isinstance(model, Candidate) else at(model) for name, model in models.items()
    }
    known = known or Known()
    there = {name: one.folder for name, one in candidates.items() if not one.is_made_late}
    if any(folder.suffix == SUFFIX for folder in there.values()):
        require_gguf_reader()
    plain = {name: folder for name, folder in there.items() if folder.suffix != SUFFIX}
    for folder in plain.values():
        require_whole(folder)
    length = window_length(there.values(), settings)
    tokenizer = common_tokenizer(plain, [text.evaluation for text in texts.values()])
    settings = fitting(there.values(), settings)
    windows = {
        name: consecutive_windows(tokenizer, text.evaluation, length, settings.limit)
        for name, text in texts.items()
    }
    for folder in plain.values():
        for cut in windows.values():
            require_rows(cut, tokenizer, folder)
    first = next(iter(texts))
    prompt = windows[first].flatten()[: settings.prompt_tokens]
    loaded = _loaded(candidates, prompt, settings, progress, device, length, known)
    most = min(PAPER_TOKENS, fewest_positions(there.values()) or PAPER_TOKENS)
    short = first_tokens(tokenizer, paper_text(texts[first].evaluation), most)
    scores = Scoring(
        candidates, windows | {PAPER: short[None]},
        {name: text.fingerprint for name, text in texts.items()} | {PAPER: texts[first].fingerprint},
        reference, device, tokenizer.decode, known, progress, compared=frozenset(windows),
    ).run()  # fmt: skip
    answers, refused = _answered(candidates, tokenizer, tasks, settings, device, known, progress)
    figures = compared_answers(answers, reference)
    opening = opening_tokens(tokenizer)
    return Measurement(
        models={
            name: _model_figures(scores[name], loaded, name, figures.get(name, {}))
            for name in candidates
        },
        settings=settings.model_dump(mode="json")
        | {
            "length": length,
            "stride": length - len(opening),
            "opening_tokens": opening,
            "windows": {name: len(cut) for name, cut in windows.items()},
            "datasets": {
                name: {"origin": text.origin, "sha256": text.fingerprint}
                for name, text in texts.items()
            },
            "scoring_dtype": "float32" if device == "cpu" else next(iter(loaded.loads.values())).dtype,
            "device": device,
            "threads": torch.get_num_threads(),
            "batch": 1,
            "reused": known.reused,
            **({"tasks_missing": refused} if refused else {}),
        },
        peak_rss_bytes=peak_rss_bytes(),
    )  # fmt: skip


def task_files(settings: EvaluationSettings, folders: Iterable[Path]) -> dict[str, TaskData]:
    """Files of the tasks that are asked for.

    Raises:
        EvaluationError: the harness is not installed, does not know a task, or lacks examples for one.
        DatasetError: no folder has a task's questions.
    """
    places = list(folders)
    found = {name: find_task(name, places) for name in settings.tasks}
    for name, data in found.items():
        check_task(name, data, settings.fewshot)
    return found


def _model_figures(
    scores: Mapping[str, Scores],
    loaded: LoadedFigures,
    name: str,
    tasks: dict[str, TaskFigures],
) -> ModelFigures:
    return ModelFigures(
        load=loaded.loads[name],
        quality={text: one.figures for text, one in scores.items() if text != PAPER},
        ppl_paper=scores[PAPER].figures["perplexity"],
        throughput=loaded.speeds.get(name),
        tasks=tasks,
    )


def _loaded(
    models: Mapping[str, Candidate],
    prompt: Int64[Tensor, " n"],
    settings: EvaluationSettings,
    progress: Progress,
    device: str,
    length: int,
    known: Known,
) -> LoadedFigures:
    """What loading took, and speeds; a model whose speed is not asked for may be known already."""
    keys = {
        name: None if one.identity is None else {"model": one.identity, "versions": versions()}
        for name, one in models.items()
    }
    found: dict[str, LoadFigures] = {}
    if not settings.throughput:
        for name, key in keys.items():
            document = known.find("load", key, name)
            with suppress(TypeError):
                if document is not None:
                    found[name] = LoadFigures(**document)
    folders = {name: one.folder for name, one in models.items() if name not in found}
    loaded = load_and_time(folders, prompt, settings, progress, device=device, length=length)
    for name, figures in loaded.loads.items():
        known.note("load", keys[name], asdict(figures))
    return LoadedFigures(loaded.loads | found, loaded.speeds)


def _answered(
    models: Mapping[str, Candidate],
    tokenizer: PreTrainedTokenizerBase,
    tasks: Mapping[str, TaskData],
    settings: EvaluationSettings,
    device: str,
    known: Known,
    progress: Progress,
) -> tuple[dict[str, dict[str, TaskAnswers]], dict[str, str]]:
    """Answers by model and task, and why there are none to a task that cannot be put to every model.

    GGUF files have none, and nobody where a model does not fit into memory in float32. A task that fails costs no other
    figure.
    """
    folders = [one.folder for one in models.values() if not one.is_made_late]
    length = min(TASK_LENGTH, fewest_positions(folders) or TASK_LENGTH)
    answers: dict[str, dict[str, TaskAnswers]] = {}
    refused: dict[str, str] = {}
    for name, one in models.items():
        if not tasks or (not one.is_made_late and one.folder.suffix == SUFFIX):
            continue
        keys = {
            task: None
            if one.identity is None
            else {
                "model": one.identity, "task": task, "data": data.digest(), "length": length,
                "limit": settings.task_limit, "shots": settings.fewshot,
                "device": device.partition(":")[0], "harness": harness_version(), "versions": versions(),
            }
            for task, data in tasks.items()
        }  # fmt: skip
        found = {task: known.find("answers", key, name) for task, key in keys.items()}
        given = {
            task: TaskAnswers(document["answers"], document["chance"])
            for task, document in found.items()
            if document is not None
        }
        wanted = {
            task: data for task, data in tasks.items() if task not in given and task not in refused
        }
        if wanted and device == "cpu" and not fits(WIDENED * file_bytes(one.folder)):
            words = f"tasks were not put: {name} does not fit into memory whole"
            progress.record("missing", {"code": "insufficient_memory", "message": words})
            return {}, dict.fromkeys(tasks, words)
        if wanted:
            progress.begin(
                Phase(PhaseKind.SCORING, f"tasks/{name}", f"tasks ({name})"), len(wanted), "tasks"
            )
            model = load_model(one.folder, device=device)
            widen(model, device)
            answered: Answered = {}
            for task, data in wanted.items():  # one by one, so that each is kept when it is done
                try:
                    given |= put_tasks(
                        name, model, tokenizer, {task: data}, length=length, limit=settings.task_limit,
                        shots=settings.fewshot, answered=answered, after_task=progress.advance, while_busy=progress.busy,
                    )  # fmt: skip
                except (EvaluationError, DatasetError) as error:
                    refused[task] = str(error)
                    progress.record("missing", {"code": error.code, "message": str(error)})
                    continue
                known.note("answers", keys[task], given[task]._asdict())
            del model
        answers[name] = given
    put = [task for task in tasks if task not in refused]
    return {name: {task: given[task] for task in put} for name, given in answers.items()}, refused
