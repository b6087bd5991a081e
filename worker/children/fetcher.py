"""Child program: fetch a model and the texts a job names. Has the Hub token, loads no model."""

from functools import partial
from pathlib import Path

from huggingface_hub import HfApi

from spq_core.errors import DatasetError
from spq_core.estimate.estimate import estimate, headers_shapes
from spq_core.hub.client import hub_api
from spq_core.hub.datasets import fetch_text
from spq_core.hub.errors import HubError, HubUnavailableError
from spq_core.hub.fetch import FetchLimits, fetch_model
from spq_core.hub.headers import fetch_headers
from spq_core.hub.publish import Publisher
from spq_core.hub.task_data import fetch_task
from spq_core.progress import PhaseKind, phase
from spq_core.recipe.document import parse_recipe
from spq_core.recipe.suitable import require_suitable
from worker.children.hub import serve_with_hub, with_retries
from worker.children.messages import Fetched, FetchSpec, Logged, Phase, Progressed
from worker.children.protocol import PipeProgress, emit


def require_feasible(api: HfApi, spec: FetchSpec, repo_id: str) -> None:
    """Refuse a job that cannot work before any weight is fetched, from headers alone."""
    recipe = parse_recipe(spec.recipe)
    if spec.reading.file is not None:
        return  # only its whole content tells its shapes
    shapes = headers_shapes(fetch_headers(api, repo_id, spec.revision, spec.reading))
    require_suitable(recipe, shapes)
    estimate(recipe, shapes)


def fetch(spec: FetchSpec) -> None:
    """Fetch what the specification lists."""
    api = hub_api(spec.endpoint, spec.token)
    if spec.output is not None:
        # Whether the result can be published is found out before hours of work, not after.
        output = spec.output
        publisher = Publisher(api, output.repo_id, spec.job_id)
        with_retries(lambda: publisher.check(private=output.private))
    for name in spec.texts:
        target = Path(spec.text_folder)
        target.mkdir(parents=True, exist_ok=True)
        try:
            fetch_text(api, name, target)
        except (HubUnavailableError, HubError, DatasetError) as error:
            # The built-in text takes its place, or it is left out; the report says so.
            emit(Logged(text=f"dataset {name} cannot be fetched: {error}"))
    for name in spec.tasks:
        Path(spec.text_folder).mkdir(parents=True, exist_ok=True)
        origin = with_retries(partial(fetch_task, api, name, Path(spec.text_folder)))
        emit(Logged(text=f"questions of {name} are those of {origin}"))
    if spec.repo_id is None:
        return
    repo_id, downloading = spec.repo_id, phase(PhaseKind.DOWNLOADING)
    with_retries(lambda: require_feasible(api, spec, repo_id))
    PipeProgress().begin(downloading, 1, "models")
    fetched = with_retries(
        lambda: fetch_model(
            api,
            repo_id,
            spec.revision,
            Path(spec.model_folder),
            limits=FetchLimits(max_bytes=spec.max_bytes),
            reading=spec.reading,
            report=lambda name, done, total: emit(
                Progressed(
                    phase=Phase.model_validate(downloading, from_attributes=True),
                    done=done,
                    total=total,
                    unit="bytes",
                    message=name,
                )
            ),
        )
    )
    emit(Fetched(commit=fetched.commit, license=fetched.license))


if __name__ == "__main__":
    serve_with_hub(FetchSpec, fetch)
