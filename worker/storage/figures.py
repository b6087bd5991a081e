"""Figures of sources and of plain INT8 that later jobs on this machine need not measure again.

    <scratch>/figures/<source>/<digest of its weights>/…       see `spq_core.evaluation.known`

A run opens an untrusted model and may say anything of it; so a source is named by the supervisor, and what a run leaves is
only ever found by runs of the same source.
"""

import hashlib
import os
import re
import shutil
from contextlib import suppress
from pathlib import Path

from app.db.attempts import Claim
from spq_core.evaluation.known import drop_oldest
from worker.children.messages import Source

FOLDER = "figures"
_FILE = re.compile(r"(scores|load|answers)-[0-9a-f]{64}\.json|[0-9a-f]{64}\.(states|findings)")
_DIGEST = re.compile(r"[0-9a-f]{64}")
LARGEST_DOCUMENT = 32 << 20


def figures_folder(root: Path, source: Source, claimed: Claim) -> Path:
    """Where figures of a source are, made if it is not there.

    Args:
        root: the worker's scratch folder.
    """
    repo = claimed.request["model"]["repo_id"]
    where = f"hub {repo} {source.revision}" if repo is not None else f"folder {source.folder}"
    folder = root / FOLDER / hashlib.sha256(where.encode()).hexdigest()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def take_in(left: Path, folder: Path, most_bytes: int) -> None:
    """Move what a run left to where later runs find it, and forget what is old.

    Args:
        left: where it left it. folder: of its source.
    """
    with suppress(OSError):
        for digest in left.iterdir():
            if not _DIGEST.fullmatch(digest.name) or digest.is_symlink() or not digest.is_dir():
                continue
            for file in digest.iterdir():
                if _is_plain(file):
                    (folder / digest.name).mkdir(exist_ok=True)
                    os.replace(file, folder / digest.name / file.name)  # noqa: PTH105
    shutil.rmtree(left, ignore_errors=True)
    drop_oldest(folder.parent, most_bytes)


def _is_plain(file: Path) -> bool:
    if not _FILE.fullmatch(file.name) or file.is_symlink() or not file.is_file():
        return False
    return file.suffix != ".json" or file.stat().st_size <= LARGEST_DOCUMENT
