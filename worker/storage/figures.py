"""Figures of sources and of plain INT8 that later jobs need not measure again.

    <scratch>/figures/<source>/<digest of its weights>/…       see `spq_core.evaluation.known`

Documents of figures are in the database, too, for workers on other machines; what arrives at heads and statistics of weights, which are
large, stay on the machine.

A run opens an untrusted model and may say anything of it; so a source is named by the supervisor, and what a run leaves is
only ever found by runs of the same source.
"""

import hashlib
import os
import re
import shutil
from contextlib import suppress
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError

from app.db.attempts import Claim
from app.db.known_figures import FigureName, keep_figures, known_figures, known_names
from app.db.session import Database
from app.telemetry import log
from spq_core.evaluation.known import drop_oldest, replace_text
from worker.children.messages import Source

FOLDER = "figures"
_DOCUMENT = re.compile(r"(scores|load|answers)-[0-9a-f]{64}\.json")
_FILE = re.compile(rf"{_DOCUMENT.pattern}|[0-9a-f]{{64}}\.(states|findings)")
_DIGEST = re.compile(r"[0-9a-f]{64}")
LARGEST_DOCUMENT = 32 << 20
LARGEST_SHARED = 1 << 20
MOST_SHARED = 64
"""Of one run."""


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


def bring(database: Database, folder: Path) -> None:
    """Put what workers on other machines measured beside what is here; nothing if the database does not say."""
    try:
        with database.read() as session:
            unknown = known_names(session, folder.name) - set(_documents(folder))
            for (digest, name), content in known_figures(session, folder.name, unknown):
                if _DIGEST.fullmatch(digest) and _DOCUMENT.fullmatch(name):
                    (folder / digest).mkdir(exist_ok=True)
                    replace_text(folder / digest / name, content)
    except (SQLAlchemyError, OSError) as error:
        log.warning("figures_not_brought", error=type(error).__name__)


def share(database: Database, folder: Path) -> None:
    """Let workers on other machines know what was measured here; figures that are lost on the way are measured again."""
    try:
        with database.read() as session:
            known = known_names(session, folder.name)
        new = [one for one in sorted(_documents(folder).items()) if one[0] not in known]
        small = [(name, file) for name, file in new if file.stat().st_size <= LARGEST_SHARED]
        contents = [(name, file.read_text(encoding="utf-8")) for name, file in small[:MOST_SHARED]]
        if contents:
            keep_figures(database, folder.name, [one for one in contents if "\0" not in one[1]])
    except (SQLAlchemyError, OSError, ValueError) as error:
        log.warning("figures_not_shared", error=type(error).__name__)


def _documents(folder: Path) -> dict[FigureName, Path]:
    return {
        FigureName(file.parent.name, file.name): file
        for file in folder.glob("*/*.json")
        if _DIGEST.fullmatch(file.parent.name) and _is_plain(file)
    }


def _is_plain(file: Path) -> bool:
    if not _FILE.fullmatch(file.name) or file.is_symlink() or not file.is_file():
        return False
    return file.suffix != ".json" or file.stat().st_size <= LARGEST_DOCUMENT
