"""One whole job without a service: compress, compress plain INT8 beside it, measure all, judge."""

import shutil
import time
import traceback
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from spq_core.artifact.manifest import read_manifest, verify_files
from spq_core.artifact.same_text import require_same_tokenizer
from spq_core.artifact.writer import require_unused
from spq_core.compression.compress import compress
from spq_core.data.tasks import TaskData
from spq_core.data.texts import Text
from spq_core.errors import SpqError
from spq_core.estimate.estimate import estimate, folder_shapes
from spq_core.estimate.room import require_room
from spq_core.evaluation.measure import NO_TASKS, measure, require_measurable
from spq_core.evaluation.settings import EvaluationSettings
from spq_core.evaluation.summary import beaten_by, summary_rows
from spq_core.machine import machine_failure
from spq_core.models.checkpoint import open_checkpoint
from spq_core.models.clean_copy import SourceModel, clean_copy
from spq_core.models.fit import check_fit
from spq_core.models.skeleton import load_skeleton
from spq_core.progress import OnBehalf, PhaseKind, Progress, phase
from spq_core.recipe.catalog import resolve
from spq_core.recipe.document import Recipe, parse_recipe
from spq_core.recipe.suitable import require_gated_tasks
from spq_core.workflow.card import write_card
from spq_core.workflow.finished import (
    FinishedRun,
    begin_measuring,
    finished_run,
    forget_notes,
    note_finished,
    probe_path,
)
from spq_core.workflow.load_gate import LoadCheck, LoadGateError, check_loads
from spq_core.workflow.preflight import preflight
from spq_core.workflow.result import (
    INT8,
    NOT_YET,
    RESULT,
    SOURCE,
    TUNED,
    Missing,
    RunResult,
    unmeasured,
)

MOST_MEASURINGS = 2
"""Beginnings after which a run that died while it measured gives up measuring."""
KILLED = (
    "measuring failed: its process was killed twice, most likely for want of memory; the artifact is complete, "
    "and `spq compare` measures it on a larger machine"
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
) -> RunResult:
    """Run a recipe and measure source, plain INT8 and result on the same data.

    A finished artifact stays whatever happens while it is measured; the result then says what is missing.

    Args:
        texts: by dataset name; holds the calibration text and every evaluation text.
        scratch: an existing folder for the INT8 baseline.
        device: where models are compressed and measured; `cpu` or a CUDA device.
        resume: go on where a killed run stopped.
        tasks: files of each of the evaluation's tasks.

    Raises:
        SpqError: the run failed.
        OSError: the disk is full while measuring, for the first time; `resume` goes on with measuring.
    """
    started = time.monotonic()
    require_gated_tasks(recipe, evaluation.tasks)
    with clean_copy(source) as copy:
        expected = _estimated(recipe, copy, evaluation)
        if expected is not None:
            progress.record("estimate", expected)
        check_source(copy)
        require_measurable(copy.folder, [texts[name] for name in evaluation.perplexity], evaluation)
        finished = compress_and_load(
            copy, recipe, out, texts.get(recipe.calibration.dataset), scratch, progress,
            resume=resume, device=device, evaluation=evaluation,
        )  # fmt: skip
        so_far = unmeasured(finished, NOT_YET).document()
        versions = read_manifest(out).versions
        write_card(out, source.name, source.revision, license_id, so_far, versions)
        progress.record("finished", so_far)
        result = _measured_or_missing(
            finished, copy, out, texts, tasks, evaluation, scratch, progress, device
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
) -> FinishedRun:
    """Try the recipe on a toy, compress, and let the artifact pass the load gate.

    What is finished already is not done again with `resume`.

    Raises:
        PreflightError: the recipe does not work on this architecture.
        LoadGateError: it does not; the artifact is gone, unless the recipe says to keep it.
        SpqError: the compression failed.
    """
    with clean_copy(source) as copy:
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
                probe_file=probe_path(out),
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


def _measured_or_missing(
    finished: FinishedRun,
    source: SourceModel,
    out: Path,
    texts: Mapping[str, Text],
    tasks: Mapping[str, TaskData],
    evaluation: EvaluationSettings,
    scratch: Path,
    progress: Progress,
    device: str,
) -> RunResult:
    """Measure; where that cannot be done, say why. The artifact is finished, and stays."""
    begun = begin_measuring(out, finished, source.folder)
    if begun.measurings > MOST_MEASURINGS:
        return unmeasured(begun, Missing("evaluation_killed", KILLED))
    try:
        return _measured(begun, source, out, texts, tasks, evaluation, scratch, progress, device)
    except KeyboardInterrupt:  # not the machine's doing: it does not count
        note_finished(out, replace(begun, measurings=begun.measurings - 1), source.folder)
        raise
    except Exception as error:
        failure = machine_failure(error)
        if failure is not None and failure.may_pass and begun.measurings < MOST_MEASURINGS:
            raise
        missing = _missing(error)
        progress.record("missing", asdict(missing))
        if failure is None and not isinstance(error, SpqError):
            traceback.print_exc()  # a bug of ours; the log has it
        return unmeasured(begun, missing)


def _missing(error: Exception) -> Missing:
    failure = machine_failure(error)
    if failure is not None:
        return Missing(failure.code, f"measuring failed: {failure.message}")
    if isinstance(error, SpqError):
        return Missing(error.code, f"measuring failed: {error}")
    return Missing("internal", f"measuring failed: {type(error).__name__}: {error}"[:500])


def _measured(
    finished: FinishedRun,
    source: SourceModel,
    out: Path,
    texts: Mapping[str, Text],
    tasks: Mapping[str, TaskData],
    evaluation: EvaluationSettings,
    scratch: Path,
    progress: Progress,
    device: str,
) -> RunResult:
    """Make the INT8 baseline unless the result is one, and measure all models."""
    folders = {SOURCE: source.folder}
    baseline, recipe = resolve("int8"), parse_recipe(finished.report.recipe)
    control = tuned_control(recipe)
    if evaluation.tuned_control and control is not None:
        folders[TUNED] = scratch / "tuned-control"
        text = texts[recipe.calibration.dataset]
        beside = OnBehalf(progress, "tuned source")
        compress(source, control, folders[TUNED], text=text, progress=beside, device=device)
    if evaluation.int8_baseline and recipe.stages != baseline.stages:
        beside = OnBehalf(progress, "plain INT8")
        compress(source, baseline, scratch / "int8-baseline", progress=beside, device=device)
        folders[INT8] = scratch / "int8-baseline"
    verify_files(out, read_manifest(out))
    folders[RESULT] = out
    corpora = {texts[name].name: texts[name] for name in evaluation.perplexity}
    measurement = measure(
        folders, corpora, evaluation, progress, reference=SOURCE, device=device, tasks=tasks
    )
    rows = summary_rows(measurement)
    return replace(
        unmeasured(finished, NOT_YET),
        measurement=measurement,
        missing=None,
        rows=rows,
        beaten_by_int8=beaten_by(rows, RESULT, INT8),
    )


def check_source(source: SourceModel) -> None:
    """Find out all that headers can tell, before any work.

    Raises:
        SpqError: the weights are not those of the model that config.json describes.
    """
    check_fit(load_skeleton(source.folder), open_checkpoint(source.folder), source.name)
    if source.lost_tokenizer_code and source.original is not None:
        require_same_tokenizer(source.folder, source.original, source.name)


def _estimated(
    recipe: Recipe, source: SourceModel, evaluation: EvaluationSettings
) -> dict[str, Any] | None:
    try:
        return estimate(recipe, folder_shapes(source.folder), evaluation).document()
    except SpqError:
        return None  # a model may be compressed whose tensors have unusual names


def tuned_control(recipe: Recipe) -> Recipe | None:
    """The recipe's training alone: what it does to a model that nothing was taken from.

    Figures of a recovered model say little without it: training on text like the evaluation text
    improves the source too.
    """
    if recipe.recover is None:
        return None
    merged = recipe.recover.model_copy(update={"adapters": "merged"})
    return recipe.model_copy(update={"stages": (merged,), "target": None})
