"""Route that tells what a job would cost, from the headers of its model alone."""

import threading

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict

from app.auth import Reader
from app.domain.errors import EstimatesBusyError, ModelNotAllowedError
from app.jobs.schemas import JobSubmission, ModelReference
from app.problems import documented
from app.settings import ApiSettings
from spq_core.catalog import resolve
from spq_core.errors import ArtifactError, RecipeError, UnsafeModelError, UnsupportedModelError
from spq_core.estimate.estimate import estimate, folder_shapes, headers_shapes
from spq_core.estimate.shapes import ModelShapes
from spq_core.hub.client import hub_api, require_reachable
from spq_core.hub.errors import HubError, HubUnavailableError
from spq_core.hub.headers import fetch_headers

router = APIRouter(tags=["estimates"])
AT_ONCE = 4
"""Estimates wait for the Hub; more of them at once would keep other requests from being served."""


class RangeView(BaseModel):
    """An expectation, and how far a model unlike those it comes from may be off it."""

    low: int
    expected: int
    high: int


class EstimateView(BaseModel):
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
    scratch_bytes: int
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
    recipe = resolve(body.recipe)
    places: threading.Semaphore = request.app.state.estimates
    if not places.acquire(blocking=False):
        raise EstimatesBusyError
    try:
        shapes, revision = _shapes(body.model, request.app.state.settings)
    finally:
        places.release()
    found = estimate(recipe, shapes, body.evaluation).document()
    return EstimateView(model=body.model.name, revision=revision, **found)


def _shapes(model: ModelReference, settings: ApiSettings) -> tuple[ModelShapes, str | None]:
    if model.repo_id is None:
        folder = settings.local_model(str(model.path))
        if folder is None:
            raise ModelNotAllowedError(str(model.path))
        return folder_shapes(folder), None
    api = hub_api(settings.hub_endpoint, None)
    require_reachable(api)
    headers = fetch_headers(api, model.repo_id, model.revision)
    return headers_shapes(headers), headers.commit
