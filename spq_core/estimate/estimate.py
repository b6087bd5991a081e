"""What a job will cost, from the headers of its source alone. Free of torch."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from spq_core.estimate.costs import (
    calibration_seconds,
    calibration_tokens,
    compression_peak,
    compression_seconds,
    evaluation_peak,
    evaluation_seconds,
    scoring_peak,
    scratch_bytes,
)
from spq_core.estimate.sizes import artifact_bytes
from spq_core.estimated_range import Range
from spq_core.evaluation.settings import EvaluationSettings
from spq_core.formats.profiles.registry import profile_named
from spq_core.hub.headers import ModelHeaders
from spq_core.models.model_folder import check_model_folder, check_settings, read_json_object
from spq_core.models.quantized.forms import is_quantized, widened_headers
from spq_core.models.reading import AS_IT_IS, Reading, require_headers
from spq_core.models.shapes import ModelShapes, read_shapes
from spq_core.models.weight_files import WeightHeader, read_header, stored_bytes, weight_files
from spq_core.recipe.document import Recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Bytes, and seconds on two cores; see `costs` for what stands behind them."""

    recipe: str
    profile: str
    source_bytes: int
    artifact_bytes: Range
    resident_bytes: float
    """Of the loaded artifact's weights."""
    compression_peak_bytes: float
    evaluation_peak_bytes: float | None
    """With all that is asked for; None where nothing is evaluated."""
    least_peak_bytes: float
    """Below this memory the job cannot be done. Between it and the peak there are no speeds, and no tasks."""
    scratch_bytes: float
    """Disk beside the source."""
    calibration_tokens: int
    """0 where nothing looks at text."""
    calibration_seconds: float
    """What passing them through the layers takes of `seconds`."""
    seconds: Range
    gpu_bytes: None = None
    """Not estimated: nothing was measured on a GPU."""

    @property
    def peak_bytes(self) -> float:
        """Highest resident memory of the whole job."""
        return max(self.compression_peak_bytes, self.evaluation_peak_bytes or 0.0)

    def document(self) -> dict[str, Any]:
        """As plain JSON values, bytes and seconds as whole numbers."""
        rounded: dict[str, Any] = _rounded(asdict(self) | {"peak_bytes": self.peak_bytes})
        return rounded


def estimate(
    recipe: Recipe, shapes: ModelShapes, evaluation: EvaluationSettings | None = None
) -> Estimate:
    """Estimate one job.

    Args:
        evaluation: what is measured afterwards; None for a compression alone.
    """
    made = artifact_bytes(recipe, shapes)
    resident = _resident(recipe, shapes, made)
    plain = len(recipe.stages) == 1 and getattr(recipe.stages[0], "is_plain", False)
    baseline = evaluation is not None and evaluation.int8_baseline and not plain
    seconds = compression_seconds(recipe, shapes)
    if evaluation is not None:
        seconds = seconds.plus(evaluation_seconds(shapes, evaluation, 3 if baseline else 2))
    return Estimate(
        recipe=recipe.metadata.name,
        profile=recipe.profile,
        source_bytes=shapes.source_bytes,
        artifact_bytes=made,
        resident_bytes=resident,
        compression_peak_bytes=compression_peak(recipe, shapes),
        evaluation_peak_bytes=None
        if evaluation is None
        else evaluation_peak(shapes, evaluation, resident, baseline=baseline),
        least_peak_bytes=max(
            compression_peak(recipe, shapes),
            0.0 if evaluation is None else scoring_peak(shapes, evaluation),
        ),
        scratch_bytes=scratch_bytes(recipe, shapes, made.expected, evaluation, baseline=baseline),
        calibration_tokens=calibration_tokens(recipe, shapes) if recipe.needs_calibration else 0,
        calibration_seconds=calibration_seconds(recipe, shapes),
        seconds=seconds,
    )


def folder_shapes(folder: Path, reading: Reading = AS_IT_IS) -> ModelShapes:
    """The matrices of a local model folder; those of quantized weights as they are when widened.

    Raises:
        ArtifactError, UnsafeModelError, UnsupportedModelError: it could not be compressed.
    """
    require_headers(reading)
    check_model_folder(folder, reading)
    tensors: dict[str, WeightHeader] = {}
    for file in weight_files(folder):
        tensors |= read_header(folder / file)
    document = read_json_object(folder / "config.json")
    config = check_settings("config.json", document, reading)
    if not is_quantized(document):
        return read_shapes(config, tensors, stored_bytes(folder))
    widened = widened_headers(document, tensors)
    return read_shapes(config, widened, sum(one.n_bytes for one in widened.values()))


def headers_shapes(headers: ModelHeaders) -> ModelShapes:
    """The matrices of a model on the Hub.

    Raises:
        UnsafeModelError, UnsupportedModelError: it could not be compressed.
    """
    return read_shapes(headers.config, headers.tensors, headers.source_bytes)


def _resident(recipe: Recipe, shapes: ModelShapes, made: Range) -> float:
    """Codes stored by entropy take a byte each; some readers widen codes when they load them."""
    if profile_named(recipe.profile).widened_by_readers:
        return float(shapes.source_bytes)
    return max(made.expected, float(shapes.elements)) if recipe.by_entropy else made.expected


def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _rounded(one) for key, one in value.items()}
    return round(value) if isinstance(value, float) else value
