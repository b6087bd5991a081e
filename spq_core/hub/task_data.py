"""Fetch the questions of tasks from the Hub into the layout of a local data folder.

They come from the branch that the Hub converts every public dataset to Parquet on (`refs/convert/parquet`:
`<configuration>/<split>/0000.parquet`), at the commit that it has at that moment, which is told.
"""

import json
from pathlib import Path

from huggingface_hub import HfApi
from pyarrow import parquet

from spq_core.data.tasks import FILES
from spq_core.errors import DatasetError
from spq_core.hub.client import require_reachable, translated_errors
from spq_core.hub.tasks import HUB_TASKS

BRANCH = "refs/convert/parquet"


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
        info = api.dataset_info(task.repo, revision=BRANCH)
    commit = info.sha or BRANCH
    files = sorted(one.rfilename for one in info.siblings or ())
    for split, ending in ((task.questions, ""), (task.examples, "-train")):
        if split is None:
            continue
        folder = f"{task.configuration}/{split}/"
        parts = [file for file in files if file.startswith(folder) and file.endswith(".parquet")]
        if not parts:
            raise DatasetError(f"task {name!r}: {task.repo} has no {folder}*.parquet at {commit}")
        lines: list[str] = []
        for part in parts:
            with translated_errors(task.repo):
                path = api.hf_hub_download(
                    task.repo, part, repo_type="dataset", revision=commit, local_dir=target / "raw"
                )
            lines += [json.dumps(row) for row in parquet.read_table(path).to_pylist()]
        (target / f"{stem}{ending}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return f"{task.repo}@{commit}"
