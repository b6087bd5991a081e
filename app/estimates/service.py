"""Whether a job can work and what it would take, from the headers of its model: for estimates and before jobs."""

import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, field

from app.domain.errors import EstimatesBusyError
from app.domain.naming_errors import ModelNotAllowedError
from app.jobs.requests import ModelReference
from app.settings import ApiSettings
from spq_core.estimate.estimate import Estimate, estimate, folder_shapes, headers_shapes
from spq_core.evaluation.settings import EvaluationSettings
from spq_core.hub.client import hub_api, require_reachable
from spq_core.hub.errors import HubError, HubUnavailableError
from spq_core.hub.headers import fetch_headers
from spq_core.models.links import refuse_links_outside
from spq_core.models.shapes import ModelShapes
from spq_core.recipe.document import Recipe
from spq_core.recipe.suitable import require_suitable

MAX_CONCURRENT = 4
"""Looks that wait for the Hub; more of them at once would keep other requests from being served."""
REMEMBERED = 64
"""Models whose shapes are kept for a while: people submit many jobs for one."""
REMEMBERED_SECONDS = 60.0
AWAY_SECONDS = 30.0
"""How long a Hub that did not answer is not asked again for a job; its worker asks."""
NEEDS_TOKEN = frozenset({"gated_model", "model_not_found", "hub_permission_denied"})
"""Refusals that the worker's own token may lift."""


@dataclass(slots=True)
class Feasibility:
    """One per process: it remembers headers for a minute."""

    settings: ApiSettings
    places: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(MAX_CONCURRENT))
    """Of looks at once."""
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _known: "OrderedDict[ModelReference, tuple[float, ModelShapes, str | None]]" = field(
        default_factory=OrderedDict
    )
    _away_until: float = 0.0

    def estimate(
        self, recipe: Recipe, model: ModelReference, evaluation: EvaluationSettings
    ) -> tuple[Estimate, str | None]:
        """What a job would take, and the commit its model was looked at.

        Raises:
            RecipeError, UnsupportedModelError, UnsafeModelError, ArtifactError: it could not work.
            ModelNotAllowedError: the local model is not in an allowed folder.
            EstimatesBusyError, HubError, HubUnavailableError: the headers cannot be had.
        """
        shapes, commit = self._shapes(model, None)
        require_suitable(recipe, shapes)
        return estimate(recipe, shapes, evaluation), commit

    def require(
        self,
        recipe: Recipe,
        model: ModelReference,
        evaluation: EvaluationSettings,
        token: str | None,
    ) -> tuple[Estimate, str | None] | None:
        """Refuse a job that could not work; else tell what it would take, and the commit its model was looked at.

        None where headers cannot be had now: its worker looks.

        Args:
            token: the client's own Hub token.

        Raises:
            RecipeError, UnsupportedModelError, UnsafeModelError, ArtifactError, HubError, ModelNotAllowedError:
                it could not.
        """
        found = self.look(model, token)
        if found is None:
            return None
        require_suitable(recipe, found[0])
        return estimate(recipe, found[0], evaluation), found[1]

    def look(
        self, model: ModelReference, token: str | None
    ) -> tuple[ModelShapes, str | None] | None:
        """A model's shapes and the commit they were looked at; None where headers cannot be had now.

        Args:
            token: the client's own Hub token.

        Raises:
            UnsupportedModelError, UnsafeModelError, ArtifactError, HubError, ModelNotAllowedError: no job could
                work.
        """
        if model.repo_id is not None and time.monotonic() < self._away_until:
            return None
        if model.file is not None:
            return None  # only its whole content tells its shapes
        try:
            return self._shapes(model, token)
        except EstimatesBusyError:
            return None
        except HubUnavailableError:
            self._away_until = time.monotonic() + AWAY_SECONDS
            return None
        except HubError as error:
            if error.code in NEEDS_TOKEN and token is None:
                return None
            raise

    def _shapes(self, model: ModelReference, token: str | None) -> tuple[ModelShapes, str | None]:
        if model.repo_id is None:
            folder = self.settings.local_model(str(model.path), model.reading)
            if folder is None:
                raise ModelNotAllowedError(model.place)
            refuse_links_outside(folder, self.settings.model_folders())
            return folder_shapes(folder, model.reading), None
        known = None if token else self._remembered(model)
        if known is not None:
            return known
        if not self.places.acquire(blocking=False):
            raise EstimatesBusyError
        try:
            api = hub_api(self.settings.hub_endpoint, token)
            require_reachable(api)
            headers = fetch_headers(api, model.repo_id, model.revision, model.reading)
        finally:
            self.places.release()
        shapes = headers_shapes(headers)
        if token is None:
            self._remember(model, shapes, headers.commit)
        return shapes, headers.commit

    def _remembered(self, model: ModelReference) -> tuple[ModelShapes, str | None] | None:
        with self._lock:
            found = self._known.get(model)
        if found is None or time.monotonic() - found[0] > REMEMBERED_SECONDS:
            return None
        return found[1:]

    def _remember(self, model: ModelReference, shapes: ModelShapes, commit: str | None) -> None:
        with self._lock:
            self._known[model] = (time.monotonic(), shapes, commit)
            while len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
