"""Measure models side by side: bytes, quality and speed from one process and one set of settings."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from spq_core.data.tasks import TaskData, find_task
from spq_core.data.texts import Text, paper_text
from spq_core.data.windows import consecutive_windows, first_tokens
from spq_core.errors import EvaluationError
from spq_core.evaluation.comparable import common_tokenizer, require_whole
from spq_core.evaluation.gguf import SUFFIX, LanguageModel, require_gguf_reader
from spq_core.evaluation.loading import LoadFigures, load, widen
from spq_core.evaluation.quality import Quality, score_windows
from spq_core.evaluation.settings import EvaluationSettings
from spq_core.evaluation.tasks.harness import TaskFigures, check_task, measure_tasks
from spq_core.evaluation.throughput import Throughput, measure_throughput
from spq_core.memory import peak_rss_bytes
from spq_core.models.config import read_config
from spq_core.models.model_folder import read_json_object
from spq_core.models.tokenizer import load_tokenizer, opening_tokens, require_rows
from spq_core.progress import Phase, PhaseKind, Progress, phase

PAPER_TOKENS = 512
DEFAULT_LENGTH = 1024
TASK_LENGTH = 2048
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
    """Highest resident memory of the process with all models loaded."""


def measure(
    folders: Mapping[str, Path],
    texts: Mapping[str, Text],
    settings: EvaluationSettings,
    progress: Progress,
    *,
    reference: str | None,
    device: str = "cpu",
    tasks: Mapping[str, TaskData] = NO_TASKS,
) -> Measurement:
    """Load every folder, time it in its stored dtype, then score it.

    Scoring runs in float32 on a CPU; on a GPU in the stored dtype, and the head in float32.

    Args:
        folders: name → model folder; all but the first may be GGUF files. texts: dataset name → text, one per `settings.perplexity`.
        reference: whose distribution the others are compared with; one of `folders`, or None.
        device: `cpu` or a CUDA device; see `choose_device`.
        tasks: files of each of `settings.tasks`.

    Raises:
        EvaluationError: a model has fewer positions than the settings need, cannot be loaded here,
            or has another vocabulary than the reference.
    """
    if any(folder.suffix == SUFFIX for folder in folders.values()):
        require_gguf_reader()
    plain = {name: folder for name, folder in folders.items() if folder.suffix != SUFFIX}
    for folder in plain.values():
        require_whole(folder)
    length = window_length(folders.values(), settings)
    tokenizer = common_tokenizer(plain, [text.evaluation for text in texts.values()])
    opening = opening_tokens(tokenizer)
    loaded: dict[str, LanguageModel] = {}
    load_figures: dict[str, LoadFigures] = {}
    settings = fitting(folders.values(), settings)
    windows = {
        name: consecutive_windows(tokenizer, text.evaluation, length, settings.limit)
        for name, text in texts.items()
    }
    for folder in plain.values():
        for cut in windows.values():
            require_rows(cut, tokenizer, folder)
    progress.begin(phase(PhaseKind.LOAD), len(folders), "models")
    for name, folder in folders.items():
        loaded[name], load_figures[name] = load(folder, device, length)
        progress.advance(name)
    first = next(iter(texts))
    speeds = _speeds(loaded, windows[first], settings, progress)
    for model in loaded.values():
        if isinstance(model, PreTrainedModel):
            widen(model, device)
    quality = {
        dataset: _score(loaded, cut, reference, dataset, progress, tokenizer.decode)
        for dataset, cut in windows.items()
    }
    done = _tasks(loaded, tokenizer, tasks, settings, reference, folders.values(), progress)
    most = min(PAPER_TOKENS, _smallest(folders.values()) or PAPER_TOKENS)
    short = first_tokens(tokenizer, paper_text(texts[first].evaluation), most)
    paper = score_windows(loaded, short[None], reference=None, decode=tokenizer.decode)
    return Measurement(
        models={
            name: ModelFigures(
                load=load_figures[name],
                quality={dataset: rows[name] for dataset, rows in quality.items()},
                ppl_paper=paper[name]["perplexity"],
                throughput=speeds.get(name),
                tasks=done.get(name, {}),
            )
            for name in folders
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
            "scoring_dtype": str(getattr(next(iter(loaded.values())), "dtype", "")).removeprefix(
                "torch."
            ),
            "device": device,
            "threads": torch.get_num_threads(),
            "batch": 1,
        },
        peak_rss_bytes=peak_rss_bytes(),
    )


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


def require_measurable(folder: Path, texts: Iterable[Text], settings: EvaluationSettings) -> None:
    """Find out all that can be known before a model is loaded: hours of work may come first.

    Raises:
        EvaluationError: windows do not fit into the model's positions, or a text is too short.
        TokenizerError: there is no tokenizer, or it makes tokens that the model has no rows for.
    """
    length = window_length([folder], settings)
    tokenizer = load_tokenizer(folder)
    for text in texts:
        windows = consecutive_windows(tokenizer, text.evaluation, length, settings.limit)
        require_rows(windows, tokenizer, folder)


def window_length(folders: Iterable[Path], settings: EvaluationSettings) -> int:
    """Tokens per window: as set, else 1024 or the positions of the smallest model.

    Raises:
        EvaluationError: windows do not fit into a model's positions.
        UnsupportedModelError: transformers cannot read a configuration.
    """
    smallest = _smallest(folders)
    length = settings.length or min(DEFAULT_LENGTH, smallest or DEFAULT_LENGTH)
    if smallest is not None and length > smallest:
        raise EvaluationError(
            f"the model has {smallest} positions, windows of {length} tokens do not fit; choose shorter ones "
            "(--length, or evaluation.length)"
        )
    return length


def fitting(folders: Iterable[Path], settings: EvaluationSettings) -> EvaluationSettings:
    """The settings with a prompt and new tokens that fit into the models' positions."""
    smallest = _smallest(folders)
    if smallest is None or settings.prompt_tokens + settings.new_tokens <= smallest:
        return settings
    new = min(settings.new_tokens, smallest // 2)
    return settings.model_copy(update={"prompt_tokens": smallest - new, "new_tokens": new})


def _smallest(folders: Iterable[Path]) -> int | None:
    """Positions of the model that has fewest; None where no configuration says."""
    positions = [_positions(folder) for folder in folders if folder.suffix != SUFFIX]
    return min((count for count in positions if count is not None), default=None)


def _positions(folder: Path) -> int | None:
    """How many positions a model has; None where its configuration does not say."""
    read_json_object(folder / "config.json")  # says what is wrong better than transformers does
    config = read_config(folder)
    positions = getattr(config, "max_position_embeddings", None)
    return positions if isinstance(positions, int) else None


def _speeds(
    models: Mapping[str, LanguageModel],
    windows: Int64[Tensor, "n length"],
    settings: EvaluationSettings,
    progress: Progress,
) -> dict[str, Throughput]:
    if not settings.throughput:
        return {}
    progress.begin(phase(PhaseKind.THROUGHPUT), len(models) * (settings.trials + 1), "runs")
    prompt = windows.flatten()[: settings.prompt_tokens]
    return measure_throughput(
        models,
        prompt,
        new_tokens=settings.new_tokens,
        trials=settings.trials,
        after_run=progress.advance,
    )


def _tasks(
    models: Mapping[str, LanguageModel],
    tokenizer: PreTrainedTokenizerBase,
    tasks: Mapping[str, TaskData],
    settings: EvaluationSettings,
    reference: str | None,
    folders: Iterable[Path],
    progress: Progress,
) -> dict[str, dict[str, TaskFigures]]:
    if not tasks:
        return {}
    ours = {name: model for name, model in models.items() if isinstance(model, PreTrainedModel)}
    answering = Phase(PhaseKind.SCORING, "tasks", "tasks")
    progress.begin(answering, len(ours) * len(tasks), "tasks")
    return measure_tasks(
        ours, tokenizer, tasks,
        reference=reference, length=min(TASK_LENGTH, _smallest(folders) or TASK_LENGTH),
        limit=settings.task_limit, shots=settings.fewshot,
        after_task=progress.advance, while_busy=progress.busy,
    )  # fmt: skip


def _score(
    models: Mapping[str, LanguageModel],
    windows: Tensor,
    reference: str | None,
    dataset: str,
    progress: Progress,
    decode: Callable[[Tensor], str],
) -> dict[str, Quality]:
    scoring = Phase(PhaseKind.SCORING, f"perplexity/{dataset}", f"perplexity on {dataset}")
    progress.begin(scoring, len(windows), "windows")
    return score_windows(
        models,
        windows,
        reference=reference,
        after_window=lambda: progress.advance(""),
        decode=decode,
    )
