"""The workers that are there and what they do, and the models in this service's own folders."""

import json
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from fastapi import APIRouter, Request

from app.db.workers import busy_workers, present_workers
from app.http.auth import Reader, database_of
from app.http.view import View
from app.settings import ApiSettings

router = APIRouter(tags=["catalog"])
LONGEST_CONFIG = 1_000_000


class CurrentJob(View):
    """What a worker is at. Of another tenant's job only that there is one."""

    id: str | None
    model: str | None
    stage: str | None
    since: datetime | None


class WorkerView(View):
    """A worker that said something within the last minute."""

    id: str
    seen_at: datetime
    state: Literal["idle", "busy"]
    job: CurrentJob | None
    facts: dict[str, Any]
    """Device, threads, limits, versions, and `isolation`: what its runs are kept from."""


class WorkerList(View):
    """All workers."""

    object: Literal["list"] = "list"
    data: list[WorkerView]
    queued: int
    """Jobs of all tenants that wait."""


class ModelView(View):
    """A model in one of the service's folders (`SPQ_MODEL_DIRS`)."""

    name: str
    """`model.path` of a job."""
    model_type: str | None
    bytes: int
    """Of its weight files."""


class ModelList(View):
    """All local models."""

    object: Literal["list"] = "list"
    data: list[ModelView]


@router.get("/workers", response_model=WorkerList)
def list_workers(request: Request, caller: Reader) -> WorkerList:
    """The workers that are there, and what each does."""
    with database_of(request).read() as session:
        busy, queued = busy_workers(session)
        rows = present_workers(session)
    found = []
    for row in rows:
        job = busy.get(row.id)
        own = job is not None and job.tenant == caller.tenant
        current = None
        if job is not None:
            current = CurrentJob(
                id=job.id if own else None, model=job.model_name if own else None,
                stage=job.stage if own else None, since=job.started_at if own else None,
            )  # fmt: skip
        found.append(
            WorkerView(
                id=row.id, seen_at=row.seen_at, state="idle" if job is None else "busy", job=current,
                facts=row.facts,
            )
        )  # fmt: skip
    return WorkerList(data=found, queued=queued)


@router.get("/models", response_model=ModelList)
def list_models(request: Request, _caller: Reader) -> ModelList:
    """Models that can be named by `model.path`."""
    settings: ApiSettings = request.app.state.settings
    names = {
        entry.name
        for folder in settings.model_folders()
        if folder.is_dir()
        for entry in folder.iterdir()
    }
    found = ((name, settings.local_model(name)) for name in sorted(names))
    return ModelList(data=[_described(name, path) for name, path in found if path is not None])


def _described(name: str, folder: Path) -> ModelView:
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    return ModelView(name=name, model_type=_model_type(folder / "config.json"), bytes=size)


def _model_type(config: Path) -> str | None:
    """As its configuration says; None where that cannot be read. A job's worker looks closer."""
    try:
        if config.stat().st_size > LONGEST_CONFIG:
            return None
        known = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    told = known.get("model_type") if isinstance(known, dict) else None
    return told[:64] if isinstance(told, str) else None
