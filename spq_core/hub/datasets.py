"""Fetch the named evaluation texts from the Hub into the layout of a local data folder."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import HfApi
from pyarrow import parquet

from spq_core.data.texts import BUILT_IN, HUB_DATASETS
from spq_core.errors import DatasetError
from spq_core.hub.client import require_reachable, translated_errors
from spq_core.hub.task_data import fetch_task

WIKITEXT = "Salesforce/wikitext"
WIKITEXT_FILES = {
    "test": "wikitext-2-raw-v1/test-00000-of-00001.parquet",
    "valid": "wikitext-2-raw-v1/validation-00000-of-00001.parquet",
}
C4 = "allenai/c4"
C4_FILES = {
    "test": "en/c4-validation.00000-of-00008.json.gz",
    "valid": "en/c4-validation.00001-of-00008.json.gz",
}
QUESTIONS = "gsm8k"
"""Questions with answers: what tasks ask is the evaluation text, their examples are calibration text."""
C4_DOCUMENTS = 1000
"""Documents kept of each C4 file; the files hold tens of thousands."""


def fetch_text(api: HfApi, name: str, target: Path) -> None:
    """Write `<name>-test.txt` and `<name>-valid.txt` into `target`.

    Raises:
        DatasetError: the name is none of the known ones.
    """
    if name in BUILT_IN:
        return
    if name not in HUB_DATASETS:
        known = ", ".join((*HUB_DATASETS, *BUILT_IN))
        raise DatasetError(f"unknown dataset {name!r}; known are {known}")
    require_reachable(api)
    if name == QUESTIONS:
        fetch_task(api, name, target)
        (target / f"{name}.jsonl").rename(target / f"{name}-test.jsonl")
        return
    repo, files = (WIKITEXT, WIKITEXT_FILES) if name == "wikitext2" else (C4, C4_FILES)
    for split, file in files.items():
        with translated_errors(repo):
            path = Path(
                api.hf_hub_download(repo, file, repo_type="dataset", local_dir=target / "raw")
            )
        text = wikitext(path) if name == "wikitext2" else "\n\n".join(c4_documents(path))
        (target / f"{name}-{split}.txt").write_text(text, encoding="utf-8")


def wikitext(path: Path) -> str:
    """The raw corpus from its parquet rows: one row a line, blank lines stored as empty strings."""
    rows = parquet.read_table(path, columns=["text"]).column("text").to_pylist()
    return "".join(row or " \n" for row in rows)


def c4_documents(path: Path) -> Iterator[str]:
    """The first documents of a C4 file."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for _, line in zip(range(C4_DOCUMENTS), lines, strict=False):
            yield json.loads(line)["text"]
