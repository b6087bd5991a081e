"""One whole job without a service: compress, compress plain INT8 beside it, measure all, judge."""

import shutil
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from spq_core.artifact.manifest import read_manifest
from spq_core.artifact.same_text import require_same_tokenizer
from spq_core.artifact.writer import require_unused
from spq_core.compression.compress import compress
from spq_core.data.tasks import TaskData
from spq_core.data.texts import Text, mixture
from spq_core.errors import SpqError
from spq_core.estimate.estimate import estimate, folder_shapes
from spq_core.estimate.room import require_room
from spq_core.evaluation.known import NO_SHELF, Shelf
from spq_core.evaluation.measure import NO_TASKS
from spq_core.evaluation.settings import EvaluationSettings
from spq_core.evaluation.windows import require_measurable
from spq_core.models.blocks import open_model
from spq_core.models.clean_copy import SourceModel, clean_copy
from spq_core.models.fit import check_fit
from spq_core.progress import PhaseKind, Progress, phase
from spq_core.recipe.document import Recipe
from spq_core.recipe.suitable import require_gated_tasks
from spq_core.workflow.card import write_card
from spq_core.workflow.finished import (
    FinishedRun,
    finished_run,
    forget_notes,
    note_finished,
    probe_path,
)
from spq_core.workflow.load_gate import LoadCheck, LoadGateError, check_loads
from spq_core.workflow.measuring import measured_or_missing
from spq_core.workflow.preflight import preflight
from spq_core.workflow.result import (
    NOT_YET,
    RunResult,
    unmeasured,
)


def compress_and_measure(
    source: SourceModel,
    recipe: Recipe,
    out: Path,
    *,
    texts: Mapping[str, Text],
    evaluation: EvaluationSettings,
    scratch: Path,
    progress: Progress,
    license_id: str | None = None,
    device: str = "cpu",
    resume: bool = False,
    tasks: Mapping[str, TaskData] = NO_TASKS,
    shelf: Shelf = NO_SHELF,
) -> RunResult:
    """Run a recipe and measure source, plain INT8 and result on the same data.

    A finished artifact stays whatever happens while it is measured; the result then says what is missing.

    Args:
        texts: by dataset name; holds the calibration text and every evaluation text, and those to mix in that there are.
        scratch: an existing folder for the INT8 baseline.
        device: where models are compressed and measured; `cpu` or a CUDA device.
        resume: go on where a killed run stopped.
        tasks: files of each of the evaluation's tasks.
        shelf: figures of the source from earlier runs, and where to leave those of this one.

    Raises:
        SpqError: the run failed.
        OSError: the disk is full while measuring, for the first time; `resume` goes on with measuring.
    """
    started = time.monotonic()
    require_gated_tasks(recipe, evaluation.tasks)
    with clean_copy(source, scratch) as copy:
        expected = _estimated(recipe, copy, evaluation)
        if expected is not None:
            progress.record("estimate", expected)
        check_source(copy)
        require_measurable(copy.folder, [texts[name] for name in evaluation.perplexity], evaluation)
        finished = compress_and_load(
            copy, recipe, out, mixture(recipe.calibration, texts), scratch, progress,
            resume=resume, device=device, evaluation=evaluation,
            shelf=shelf if evaluation.reuse else NO_SHELF,
        )  # fmt: skip
        so_far = unmeasured(finished, NOT_YET).document()
        versions = read_manifest(out).versions
        write_card(out, source.name, source.revision, license_id, so_far, versions)
        progress.record("finished", so_far)
        result = measured_or_missing(
            finished, copy, out, texts, tasks, evaluation, scratch, progress, device, shelf
        )
    result = replace(
        result,
        estimate=expected,
        seconds=time.monotonic() - started,
        gpu_peak_bytes=torch.cuda.max_memory_allocated(device) if device != "cpu" else None,
    )
    for row in result.rows:
        progress.record("metric", row.document())
    write_card(out, source.name, source.revision, license_id, result.document(), versions)
    forget_notes(out)
    return result


def compress_and_load(
    source: SourceModel,
    recipe: Recipe,
    out: Path,
    text: Text | None,
    scratch: Path,
    progress: Progress,
    *,
    resume: bool,
    device: str,
    evaluation: EvaluationSettings | None = None,
    shelf: Shelf = NO_SHELF,
) -> FinishedRun:
    """Try the recipe on a toy, compress, and let the artifact pass the load gate.

    What is finished already is not done again with `resume`.

    Raises:
        PreflightError: the recipe does not work on this architecture.
        LoadGateError: it does not; the artifact is gone, unless the recipe says to keep it.
        SpqError: the compression failed.
    """
    with clean_copy(source, scratch) as copy:
        finished = finished_run(out, recipe, copy.folder) if resume else None
        if finished is None:
            forget_notes(out)
            require_unused(out)
            check_source(copy)
            if not resume:
                require_room(recipe, copy.folder, out.absolute().parent, evaluation)
                preflight(copy, recipe, text, scratch, progress)
            report = compress(
                copy, recipe, out, text=text, progress=progress, resume=resume, device=device,
                probe_file=probe_path(out), shelf=shelf,
            )  # fmt: skip
            finished = FinishedRun(report=report, load_check=None)
            note_finished(out, finished, copy.folder)
        if finished.load_check is None:
            finished = replace(finished, load_check=_loaded(copy, recipe, out, progress))
            note_finished(out, finished, copy.folder)
    return finished


def _loaded(source: SourceModel, recipe: Recipe, out: Path, progress: Progress) -> LoadCheck:
    """Let the artifact pass the load gate."""
    progress.begin(phase(PhaseKind.LOAD_GATE), 1, "process")
    try:
        found = check_loads(out, probe_path(out), source.folder)
    except LoadGateError:
        forget_notes(out)
        if recipe.gates.on_fail == "discard":
            shutil.rmtree(out, ignore_errors=True)
        raise
    progress.advance("loaded, compared, generated")
    return found


def check_source(source: SourceModel) -> None:
    """Find out all that headers can tell, before any work.

    Raises:
        SpqError: the weights are not those of the model that config.json describes.
    """
    check_fit(*open_model(source.folder), source.name)
    if source.lost_tokenizer_code and source.original is not None:
        require_same_tokenizer(source.folder, source.original, source.name)


def _estimated(
    recipe: Recipe, source: SourceModel, evaluation: EvaluationSettings
) -> dict[str, Any] | None:
    try:
        return estimate(recipe, folder_shapes(source.folder), evaluation).document()
    except SpqError:
        return None  # a model may be compressed whose tensors have unusual names
