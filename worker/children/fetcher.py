"""Child program: fetch a model and the texts a job names. Has the Hub token, loads no model."""

from pathlib import Path
from typing import Any

from huggingface_hub import HfApi

from spq_core.estimate.estimate import estimate, headers_shapes
from spq_core.hub.client import hub_api
from spq_core.hub.datasets import fetch_text
from spq_core.hub.errors import HubError, HubUnavailableError
from spq_core.hub.fetch import FetchLimits, fetch_model
from spq_core.hub.headers import fetch_headers
from spq_core.hub.publish import Publisher
from spq_core.recipe.document import parse_recipe
from spq_core.recipe.suitable import require_suitable
from worker.children.hub import serve_with_hub, with_retries
from worker.children.protocol import PipeProgress, emit


def require_feasible(api: HfApi, spec: dict[str, Any]) -> None:
    """Refuse a job that cannot work before any weight is fetched, from headers alone."""
    recipe = parse_recipe(spec["recipe"])
    shapes = headers_shapes(fetch_headers(api, spec["repo_id"], spec["revision"]))
    require_suitable(recipe, shapes)
    estimate(recipe, shapes)


def fetch(spec: dict[str, Any]) -> None:
    """Fetch what the specification lists."""
    api = hub_api(spec["endpoint"], spec["token"])
    if spec["output"] is not None:
        # Whether the result can be published is found out before hours of work, not after.
        output = spec["output"]
        publisher = Publisher(api, output["repo_id"], spec["job_id"])
        with_retries(lambda: publisher.check(private=output["private"]))
    for name in spec["texts"]:
        target = Path(spec["text_folder"])
        target.mkdir(parents=True, exist_ok=True)
        try:
            fetch_text(api, name, target)
        except (HubUnavailableError, HubError) as error:
            # The built-in text takes its place, and the report says so.
            emit("log", text=f"dataset {name} cannot be fetched: {error}")
    if spec["repo_id"] is None:
        return
    with_retries(lambda: require_feasible(api, spec))
    progress = PipeProgress()
    progress.stage("downloading", 1, "models")
    fetched = with_retries(
        lambda: fetch_model(
            api,
            spec["repo_id"],
            spec["revision"],
            Path(spec["model_folder"]),
            limits=FetchLimits(max_bytes=spec["max_bytes"]),
            report=lambda name, done, total: emit(
                "progress", stage="downloading", done=done, total=total, unit="bytes", message=name
            ),
        )
    )
    emit("fetched", commit=fetched.commit, license=fetched.license)


if __name__ == "__main__":
    serve_with_hub(fetch)
