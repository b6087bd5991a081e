"""Fetch the questions of tasks from the Hub into the layout of a local data folder.

They come from the branch that the Hub converts every public dataset to Parquet on (`refs/convert/parquet`:
`<configuration>/<split>/0000.parquet`), at the commit that it has at that moment, which is told.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import HfApi
from pyarrow import ArrowException, parquet

from spq_core.data.tasks import FILES, LARGEST_FILE
from spq_core.errors import DatasetError
from spq_core.hub.client import require_reachable, translated_errors
from spq_core.hub.tasks import HUB_TASKS

BRANCH = "refs/convert/parquet"
ROWS_AT_ONCE = 256


def fetch_task(api: HfApi, name: str, target: Path) -> str:
    """Write a task's questions, and its examples if it has some, into `target`; return the dataset and its commit.

    Raises:
        DatasetError: the Hub has no such task, or its dataset is not as it should be.
        HubError, HubUnavailableError: it cannot be had.
    """
    stem = FILES.get(name, name)
    if stem not in HUB_TASKS:
        raise DatasetError(f"task {name!r}: its questions are not known to be on the Hub")
    task = HUB_TASKS[stem]
    require_reachable(api)
    with translated_errors(task.repo):
        info = api.dataset_info(task.repo, revision=BRANCH, files_metadata=True)
    commit = info.sha or BRANCH
    sizes = {one.rfilename: one.size or 0 for one in info.siblings or ()}
    for split, ending in ((task.questions, ""), (task.examples, "-train")):
        if split is None:
            continue
        file = re.compile(rf"{re.escape(task.configuration)}/{re.escape(split)}/\d{{4}}\.parquet")
        parts = sorted(part for part in sizes if file.fullmatch(part))
        if not parts:
            place = f"{task.configuration}/{split}/*.parquet"
            raise DatasetError(f"task {name!r}: {task.repo} has no {place} at {commit}")
        if sum(sizes[part] for part in parts) > LARGEST_FILE:
            raise DatasetError(
                f"task {name!r}: {task.repo} is larger than {LARGEST_FILE >> 20} MiB"
            )
        paths = [_downloaded(api, task.repo, part, commit, target) for part in parts]
        _write_rows(name, paths, target / f"{stem}{ending}.jsonl")
    return f"{task.repo}@{commit}"


def _downloaded(api: HfApi, repo: str, part: str, commit: str, target: Path) -> Path:
    with translated_errors(repo):
        return Path(
            api.hf_hub_download(
                repo, part, repo_type="dataset", revision=commit, local_dir=target / "raw"
            )
        )


def _write_rows(name: str, paths: list[Path], file: Path) -> None:
    with file.open("w", encoding="utf-8") as written:
        for path in paths:
            for line in _lines(path, name):
                written.write(f"{line}\n")
                if written.tell() > LARGEST_FILE:
                    raise DatasetError(
                        f"task {name!r}: its questions are more than {LARGEST_FILE >> 20} MiB"
                    )
        if not written.tell():
            raise DatasetError(f"task {name!r}: its dataset has no rows")


def _lines(path: Path, name: str) -> Iterator[str]:
    """Rows as JSON.

    Raises:
        DatasetError: the file is damaged, or holds what JSON does not.
    """
    try:
        for batch in parquet.ParquetFile(path).iter_batches(batch_size=ROWS_AT_ONCE):
            for row in batch.to_pylist():
                yield json.dumps(row, allow_nan=False)
    except (ValueError, TypeError, OverflowError, ArrowException) as error:
        raise DatasetError(f"task {name!r}: its questions cannot be read: {error}"[:300]) from None
