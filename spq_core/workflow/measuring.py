"""Measure a finished artifact beside its source and plain INT8. The artifact stays, whatever happens."""

import traceback
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from spq_core.artifact.manifest import MANIFEST_FILE, file_sha256, read_manifest, verify_files
from spq_core.compression.compress import compress
from spq_core.compression.provenance import weights_digest
from spq_core.data.tasks import TaskData
from spq_core.data.texts import Text
from spq_core.errors import SpqError
from spq_core.evaluation.candidate import Candidate, at
from spq_core.evaluation.known import Known, Shelf
from spq_core.evaluation.measure import measure
from spq_core.evaluation.settings import EvaluationSettings
from spq_core.evaluation.summary import beaten_by, summary_rows
from spq_core.machine import machine_failure
from spq_core.models.clean_copy import SourceModel
from spq_core.progress import OnBehalf, Progress
from spq_core.recipe.catalog import resolve
from spq_core.recipe.document import Recipe, parse_recipe
from spq_core.workflow.finished import (
    FinishedRun,
    begin_measuring,
    figures_path,
    note_finished,
)
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


def measured_or_missing(
    finished: FinishedRun,
    source: SourceModel,
    out: Path,
    texts: Mapping[str, Text],
    tasks: Mapping[str, TaskData],
    evaluation: EvaluationSettings,
    scratch: Path,
    progress: Progress,
    device: str,
    shelf: Shelf,
) -> RunResult:
    """Measure; where that cannot be done, say why. The artifact is finished, and stays."""
    begun = begin_measuring(out, finished, source.folder)
    if begun.measurings > MOST_MEASURINGS:
        return unmeasured(begun, Missing("evaluation_killed", KILLED))
    try:
        return _measured(
            begun, source, out, texts, tasks, evaluation, scratch, progress, device, shelf
        )
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
    shelf: Shelf,
) -> RunResult:
    """Make the INT8 baseline unless the result is one, and measure all models."""
    digest = weights_digest(source.folder)
    baseline, recipe = resolve("int8"), parse_recipe(finished.report.recipe)
    int8_digest = f"{digest} {baseline.sha256()}"

    def made(recipe: Recipe, name: str, title: str, text: Text | None) -> Path:
        beside = OnBehalf(progress, title)
        compress(source, recipe, scratch / name, text=text, progress=beside, device=device)
        return scratch / name

    models = {SOURCE: at(source.folder, digest)}
    control = tuned_control(recipe)
    if evaluation.tuned_control and control is not None:
        text = texts[recipe.calibration.dataset]
        make = partial(made, control, "tuned-control", "tuned source", text)
        models[TUNED] = Candidate(make, is_made_late=True)
    if evaluation.int8_baseline and recipe.stages != baseline.stages:
        make = partial(made, baseline, "int8-baseline", "plain INT8", None)
        models[INT8] = Candidate(make, int8_digest, is_made_late=True)
    verify_files(out, read_manifest(out))
    models[RESULT] = at(out, file_sha256(out / MANIFEST_FILE))
    corpora = {texts[name].name: texts[name] for name in evaluation.perplexity}
    known = Known(
        folder=figures_path(out), shared=shelf.shared(digest) if evaluation.reuse else (),
        # On the shelf at once: a run that is killed later need not ask the source again.
        states_folder=scratch if shelf.leave is None else shelf.leave / digest, by=shelf.by,
    )  # fmt: skip
    measurement = measure(
        models, corpora, evaluation, progress, reference=SOURCE, device=device, tasks=tasks,
        known=known,
    )  # fmt: skip
    if shelf.leave is not None:
        known.hand_over({digest, int8_digest}, shelf.leave / digest)
    rows = summary_rows(measurement)
    return replace(
        unmeasured(finished, NOT_YET),
        measurement=measurement,
        missing=None,
        rows=rows,
        beaten_by_int8=beaten_by(rows, RESULT, INT8),
    )


def tuned_control(recipe: Recipe) -> Recipe | None:
    """The recipe's training alone: what it does to a model that nothing was taken from.

    Figures of a recovered model say little without it: training on text like the evaluation text
    improves the source too.
    """
    if recipe.recover is None:
        return None
    kept = recipe.recover.adapters == "kept"
    alone = recipe.recover.model_copy(update={"adapters": "merged"} if kept else {})
    return recipe.model_copy(update={"stages": (alone,), "target": None})
