"""One whole job without a service: compress, compress plain INT8 beside it, measure all, judge."""

import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from spq_core.artifact.card import write_card
from spq_core.artifact.manifest import read_manifest, verify_files
from spq_core.artifact.write import require_unused
from spq_core.calibration.texts import Text
from spq_core.catalog import resolve
from spq_core.errors import SpqError
from spq_core.estimate.estimate import estimate, folder_shapes
from spq_core.evaluation.measure import Measurement, measure, window_length
from spq_core.evaluation.settings import EvaluationSettings
from spq_core.evaluation.summary import Row, beaten_by, summary_rows
from spq_core.gates import check_gates
from spq_core.load_gate import LoadCheck, LoadGateError, check_loads
from spq_core.model_files import check_model_folder
from spq_core.pipeline import SourceModel, compress
from spq_core.preflight import preflight
from spq_core.progress import Progress
from spq_core.recipe import Recipe, parse_recipe
from spq_core.recipe_stages import RecoverStage
from spq_core.report import CompressionReport

SOURCE, TUNED, INT8, RESULT = "source", "source, tuned", "int8", "result"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """Everything a run found."""

    report: CompressionReport
    measurement: Measurement
    rows: tuple[Row, ...]
    """Source, plain INT8 and the result, in this order; plain INT8 once when it is the result. Behind
    the source, where the recipe recovers by training, the source trained in the same way."""
    load_check: LoadCheck
    """How the artifact fared in a fresh process."""
    beaten_by_int8: bool
    """Plain INT8 is at most as large and at least as good."""
    estimate: dict[str, Any] | None
    """What the headers alone let expect; None where they do not say enough."""
    seconds: float
    """From the preflight to the last figure."""
    gpu_peak_bytes: int | None
    """None where no GPU was used."""

    def check_gates(self) -> None:
        """Compare the result with its recipe's limits.

        Raises:
            QualityGateError: naming the figure, its value and the limit.
        """
        check_gates(parse_recipe(self.report.recipe).gates, self.measurement, RESULT, SOURCE)

    def document(self) -> dict[str, Any]:
        """As plain JSON values."""
        report = asdict(self.report) | {
            "ratio_to_source": self.report.ratio_to_source,
            "ratio_to_fp32": self.report.ratio_to_fp32,
        }
        return {
            "compression": report,
            "evaluation": asdict(self.measurement),
            "rows": [asdict(row) for row in self.rows],
            "load_check": asdict(self.load_check),
            "beaten_by_int8": self.beaten_by_int8,
            "estimate": self.estimate,
            "measured": self.measured(),
        }

    def measured(self) -> dict[str, float]:
        """The figures of `estimate`, as they turned out."""
        evaluated = self.measurement.peak_rss_bytes
        gpu = {} if self.gpu_peak_bytes is None else {"gpu_peak_bytes": self.gpu_peak_bytes}
        return gpu | {
            "artifact_bytes": self.report.artifact_bytes,
            "resident_bytes": self.measurement.models[RESULT].load.resident_bytes,
            "compression_peak_bytes": self.report.peak_rss_bytes,
            "evaluation_peak_bytes": evaluated,
            "peak_bytes": max(self.report.peak_rss_bytes, evaluated),
            "seconds": round(self.seconds, 1),
        }


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
) -> RunResult:
    """Run a recipe and measure source, plain INT8 and result on the same data.

    Args:
        texts: by dataset name; holds the calibration text and every evaluation text.
        scratch: an existing folder for the INT8 baseline.
        device: where models are compressed and measured; `cpu` or a CUDA device.
        resume: go on where a killed compression stopped.

    Raises:
        SpqError: the run failed.
    """
    started = time.monotonic()
    check_model_folder(source.folder)
    expected = _estimated(recipe, source, evaluation)
    if expected is not None:
        progress.record("estimate", expected)
    window_length([source.folder], evaluation)
    calibration = texts.get(recipe.calibration.dataset)
    report, load_check = compress_and_load(
        source, recipe, out, calibration, scratch, progress, resume=resume, device=device
    )
    try:
        result = _measured(
            report, load_check, source, out, texts, evaluation, scratch, progress, device
        )
        result = replace(
            result,
            estimate=expected,
            seconds=time.monotonic() - started,
            gpu_peak_bytes=torch.cuda.max_memory_allocated(device) if device != "cpu" else None,
        )
    except Exception:
        shutil.rmtree(out, ignore_errors=True)  # an unmeasured artifact is no result
        raise
    for row in result.rows:
        progress.record("metric", asdict(row))
    versions = read_manifest(out).versions
    write_card(out, source.name, source.revision, license_id, result.document(), versions)
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
) -> tuple[CompressionReport, LoadCheck]:
    """Try the recipe on a toy, compress, and let the artifact pass the load gate.

    Raises:
        PreflightError: the recipe does not work on this architecture.
        LoadGateError: it does not; the artifact is gone, unless the recipe says to keep it.
        SpqError: the compression failed.
    """
    require_unused(out)
    if not resume:
        preflight(source, recipe, text, scratch, progress)
    probe_file = scratch / "probe.safetensors"
    report = compress(
        source, recipe, out, text=text, progress=progress, resume=resume, device=device,
        probe_file=probe_file,
    )  # fmt: skip
    progress.stage("load gate", 1, "process")
    try:
        found = check_loads(out, probe_file)
    except LoadGateError:
        if recipe.gates.on_fail == "discard":
            shutil.rmtree(out, ignore_errors=True)
        raise
    progress.advance("loaded, compared, generated")
    return report, found


def _measured(
    report: CompressionReport,
    load_check: LoadCheck,
    source: SourceModel,
    out: Path,
    texts: Mapping[str, Text],
    evaluation: EvaluationSettings,
    scratch: Path,
    progress: Progress,
    device: str,
) -> RunResult:
    """Make the INT8 baseline unless the result is one, and measure all models."""
    folders = {SOURCE: source.folder}
    baseline, recipe = resolve("int8"), parse_recipe(report.recipe)
    control = tuned_control(recipe)
    if evaluation.tuned_control and control is not None:
        folders[TUNED] = scratch / "tuned-control"
        text = texts[recipe.calibration.dataset]
        compress(source, control, folders[TUNED], text=text, progress=progress, device=device)
    if evaluation.int8_baseline and recipe.stages != baseline.stages:
        compress(source, baseline, scratch / "int8-baseline", progress=progress, device=device)
        folders[INT8] = scratch / "int8-baseline"
    verify_files(out, read_manifest(out))
    folders[RESULT] = out
    corpora = {texts[name].name: texts[name] for name in evaluation.perplexity}
    measurement = measure(folders, corpora, evaluation, progress, reference=SOURCE, device=device)
    rows = summary_rows(measurement)
    return RunResult(
        report=report,
        measurement=measurement,
        rows=rows,
        load_check=load_check,
        beaten_by_int8=beaten_by(rows, RESULT, INT8),
        estimate=None,
        seconds=0.0,
        gpu_peak_bytes=None,
    )


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
    training = [stage for stage in recipe.stages if isinstance(stage, RecoverStage)]
    if not training:
        return None
    merged = tuple(stage.model_copy(update={"adapters": "merged"}) for stage in training)
    return recipe.model_copy(update={"stages": merged, "target": None})
