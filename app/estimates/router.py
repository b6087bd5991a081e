"""Route that tells what a job would cost, from the headers of its model alone."""

from fastapi import APIRouter, Request
from pydantic import ConfigDict

from app.domain.errors import EstimatesBusyError
from app.domain.naming_errors import ModelNotAllowedError
from app.estimates.service import Feasibility
from app.http.auth import Reader
from app.http.problems import documented
from app.http.view import View
from app.jobs.requests import JobSubmission
from spq_core.errors import ArtifactError, RecipeError, UnsafeModelError, UnsupportedModelError
from spq_core.hub.errors import HubError, HubUnavailableError
from spq_core.recipe.catalog import resolve

router = APIRouter(tags=["estimates"])


class RangeView(View):
    """An expectation, and how far a model unlike those it comes from may be off it."""

    low: int
    expected: int
    high: int


class EstimateView(View):
    """Bytes, and seconds on two CPU cores."""

    model_config = ConfigDict(extra="ignore")

    object: str = "estimate"
    model: str
    revision: str | None
    recipe: str
    profile: str
    source_bytes: int
    artifact_bytes: RangeView
    resident_bytes: int
    compression_peak_bytes: int
    evaluation_peak_bytes: int | None
    peak_bytes: int
    least_peak_bytes: int
    """Memory below which a worker refuses the job; between it and `peak_bytes` there are no speeds, and no tasks."""
    scratch_bytes: int
    calibration_tokens: int
    """0 where nothing looks at text."""
    calibration_seconds: int
    """What passing them through the layers takes of `seconds`."""
    seconds: RangeView
    gpu_bytes: int | None
    """Not estimated yet."""


@router.post(
    "/estimates",
    responses=documented(
        EstimatesBusyError, RecipeError, ModelNotAllowedError, ArtifactError, UnsafeModelError, UnsupportedModelError,
        HubError, HubUnavailableError,
    ),
)  # fmt: skip
def make_estimate(body: JobSubmission, request: Request, _caller: Reader) -> EstimateView:
    """What a job with this body would take. Reads config.json and the headers of the weights, and no weight.

    Models that only a token may read cannot be estimated here: this process has none.
    """
    feasibility: Feasibility = request.app.state.feasibility
    found, revision = feasibility.estimate(resolve(body.recipe), body.model, body.evaluation)
    return EstimateView(model=body.model.name, revision=revision, **found.document())
