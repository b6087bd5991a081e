"""Where an attempt's model comes from, and what has to be fetched for it."""

from pathlib import Path

from app.db.attempts import Claim
from spq_core.errors import SpqError
from spq_core.models.links import refuse_links_outside
from spq_core.models.reading import Reading
from worker.children.messages import FetchSpec, Source
from worker.errors import failed
from worker.settings import WorkerSettings
from worker.storage.inputs import missing_tasks, missing_texts


def source_of(claimed: Claim, settings: WorkerSettings, folder: Path) -> Source:
    """The model's name, and the folder it is or will be in.

    Args:
        folder: where a model of the Hub is fetched to.

    Raises:
        ChildFailedError: the local folder that is asked for is not there, or leads out of what may be read.
    """
    model = claimed.request["model"]
    reading = Reading.of_request(model)
    if model["repo_id"] is None:
        found = settings.local_model(model["path"], reading)
        if found is None:
            raise failed(
                "model_not_found",
                f"the worker has no local model {model['path']!r} in its SPQ_MODEL_DIRS",
            )
        try:
            refuse_links_outside(found, settings.model_folders())
        except SpqError as error:
            raise failed(error.code, str(error)) from None
    else:
        found = folder / reading.subfolder
    return Source(folder=str(found), name=model["repo_id"] or model["path"], reading=reading)


def fetching_spec(
    claimed: Claim,
    settings: WorkerSettings,
    folder: Path,
    token: str | None,
    text_folder: Path,
) -> FetchSpec:
    """What the fetcher is told.

    Args:
        folder: where a model of the Hub goes.
    """
    request = claimed.request
    return FetchSpec(
        endpoint=settings.hub_endpoint,
        token=token,
        job_id=claimed.job_id,
        repo_id=request["model"]["repo_id"],
        revision=request["model"]["revision"],
        recipe=claimed.recipe,
        model_folder=str(folder),
        reading=Reading.of_request(request["model"]),
        output=request["output"],
        texts=missing_texts(settings.data_dir, request, claimed.recipe),
        tasks=missing_tasks(settings.data_dir, request),
        text_folder=str(text_folder),
        max_bytes=settings.max_model_bytes,
    )
