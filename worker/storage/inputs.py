"""What of a job is on this machine already."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spq_core.data.tasks import FILES, find_task
from spq_core.data.texts import BUILT_IN, find_text
from spq_core.errors import DatasetError
from spq_core.recipe.document import parse_recipe
from worker.settings import WorkerSettings


def readable_files(settings: WorkerSettings, source: Path) -> list[Path]:
    """What a run on this machine reads beside its own folders: the model, texts, what the owner allows."""
    linked = {path.resolve() for path in source.iterdir() if path.is_symlink()}
    more = [Path(part) for part in settings.run_reads.split(os.pathsep) if part]
    texts = [settings.data_dir] if settings.data_dir else []
    return [source, *sorted(linked), *texts, *more]


def missing_texts(
    data_dir: Path | None, request: Mapping[str, Any], recipe: Mapping[str, Any]
) -> list[str]:
    """Datasets of a job that no local folder has."""
    names = set(request["evaluation"]["perplexity"])
    parsed = parse_recipe(dict(recipe))
    if parsed.needs_calibration:
        names.update(parsed.calibration.datasets)
    return sorted(name for name in names.difference(BUILT_IN) if not _is_local(name, data_dir))


def missing_tasks(data_dir: Path | None, request: Mapping[str, Any]) -> list[str]:
    """Tasks of a job whose questions no local folder has; of those with the same questions, one."""
    folders = [] if data_dir is None else [data_dir]
    missing: dict[str, str] = {}
    for name in request["evaluation"].get("tasks", ()):
        try:
            find_task(name, folders)
        except DatasetError:
            missing.setdefault(FILES.get(name, name), name)
    return list(missing.values())


def _is_local(name: str, data_dir: Path | None) -> bool:
    try:
        find_text(name, data_dir)
    except DatasetError:
        return False
    return True
