"""Load models as users would, note what that took, and time them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Int64
from torch import Tensor

from spq_core.artifact.gguf_file import gguf_file
from spq_core.evaluation.gguf import SUFFIX, LanguageModel, has_gguf_reader
from spq_core.evaluation.loading import COUNTED_FILES, LoadFigures, load
from spq_core.evaluation.settings import EvaluationSettings
from spq_core.evaluation.throughput import Throughput, measure_throughput
from spq_core.memory import memory_limit
from spq_core.models.weight_files import stored_bytes
from spq_core.progress import PhaseKind, Progress, phase

PROGRAM_BYTES = 700 << 20
"""Interpreter and libraries, beside models."""
ROOM = 1.15
"""By how much a loaded model may be larger than its files, and what works on it."""


@dataclass(frozen=True, slots=True)
class LoadedFigures:
    """Of all models, by name."""

    loads: dict[str, LoadFigures]
    speeds: dict[str, Throughput]
    """Empty where none were asked for, or where the models do not fit into memory together."""


def load_and_time(
    folders: Mapping[str, Path],
    prompt: Int64[Tensor, " n"],
    settings: EvaluationSettings,
    progress: Progress,
    *,
    device: str,
    length: int,
) -> LoadedFigures:
    """Load every model in its stored form; time them taking turns.

    Args:
        length: tokens of a window, which a GGUF file is opened for.
    """
    sizes = {name: file_bytes(folder) for name, folder in folders.items()}
    on_cpu = device == "cpu"
    together = settings.throughput and not (on_cpu and not fits(sum(sizes.values())))
    progress.begin(phase(PhaseKind.LOAD), len(folders), "models")
    loads: dict[str, LoadFigures] = {}
    loaded: dict[str, LanguageModel] = {}
    for name, folder in folders.items():
        there = as_run(folder)
        if there is None or (on_cpu and not fits(sizes[name])):
            loads[name] = not_loaded(sizes[name])
        else:
            model, loads[name] = load(there, device, length)
            if together:
                loaded[name] = model
            del model
        progress.advance(name)
    if not together:
        return LoadedFigures(loads, {})
    progress.begin(phase(PhaseKind.THROUGHPUT), len(loaded) * (settings.trials + 1), "runs")
    speeds = measure_throughput(
        loaded, prompt, new_tokens=settings.new_tokens, trials=settings.trials,
        after_run=progress.advance,
    )  # fmt: skip
    return LoadedFigures(loads, speeds)


def as_run(folder: Path) -> Path | None:
    """What users load: of an artifact of profile gguf its file, by llama.cpp; None where that is not installed."""
    file = gguf_file(folder)
    if file is None:
        return folder
    return file if has_gguf_reader() else None


def fits(stored: int) -> bool:
    """Whether models of so many bytes can be loaded and worked with in the memory that this process may use."""
    limit = memory_limit()
    return limit is None or PROGRAM_BYTES + ROOM * stored <= limit


def file_bytes(folder: Path) -> int:
    """Of a model folder or a GGUF file."""
    if folder.suffix == SUFFIX:
        return folder.stat().st_size
    return stored_bytes(folder, COUNTED_FILES)


def not_loaded(size: int) -> LoadFigures:
    """Of a model that does not fit into memory, or whose program is not here."""
    return LoadFigures(bytes_on_disk=size, resident_bytes=None, load_peak_bytes=0, dtype="")
