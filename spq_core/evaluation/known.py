"""Figures that were measured before, kept by everything that they depend on.

A key names the model by the digest of its weights, and the tokens, settings and versions; what has another key is measured
anew. Speeds are never kept: they are of one machine at one moment. Free of torch.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

Key = Mapping[str, Any]
VERSIONS = ("spq", "torch", "transformers")
STATES = ".states"


@dataclass(frozen=True, slots=True)
class Shelf:
    """Where figures of models wait for later runs: a folder for each source, named by its digest."""

    take: Path | None = None
    """Where those of earlier runs are; only read."""
    leave: Path | None = None
    """Where to put those of this run; may be the same."""
    by: str = ""
    """Whom they are measured for: a job, in their origin."""

    def shared(self, digest: str) -> tuple[Path, ...]:
        """Folders with figures of a source."""
        return () if self.take is None else (self.take / digest,)


NO_SHELF = Shelf()


class KnownFigures(NamedTuple):
    """Something that was measured."""

    document: dict[str, Any]
    origin: dict[str, Any]
    """When (`at`), and for whom (`by`)."""


@dataclass(frozen=True, slots=True)
class Known:
    """Figures in folders: those of this run, and others' that are only read."""

    folder: Path | None = None
    """Where this run notes its own; None to keep nothing."""
    shared: Sequence[Path] = ()
    states_folder: Path | None = None
    """Where it keeps what arrives at heads, which is large; by default in `folder`."""
    by: str = ""
    """Whom figures are measured for."""
    reused: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Origins of what was found among others' figures, by model."""

    def find(self, kind: str, key: Key | None, model: str = "") -> dict[str, Any] | None:
        """What was measured under this key; None if nothing was, or what is there cannot be read."""
        if key is None:
            return None
        for folder in self._folders():
            found = _read(folder / f"{kind}-{digest(key)}.json", key)
            if found is not None:
                if folder != self.folder and model:
                    self.reused[model] = found.origin
                return found.document
        return None

    def note(self, kind: str, key: Key | None, document: Mapping[str, Any]) -> None:
        """Keep what was measured."""
        if key is None or self.folder is None:
            return
        origin = {"at": datetime.now(UTC).isoformat(timespec="seconds"), "by": self.by}
        whole = {"key": dict(key), "document": dict(document), "origin": origin}
        self.folder.mkdir(parents=True, exist_ok=True)
        replace_text(self.folder / f"{kind}-{digest(key)}.json", json.dumps(whole))

    def states(self, key: Key | None) -> Path | None:
        """The file of states kept under this key; None if there is none."""
        if key is None:
            return None
        places = [] if self.states_folder is None else [self.states_folder]
        files = (folder / f"{digest(key)}{STATES}" for folder in (*places, *self._folders()))
        return next((file for file in files if file.is_file()), None)

    def states_place(self, key: Key | None) -> Path | None:
        """Where to keep states; None where they are not kept."""
        folder = self.states_folder or self.folder
        if key is None or folder is None:
            return None
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{digest(key)}{STATES}"

    def hand_over(self, identities: Collection[str], target: Path) -> None:
        """Move this run's figures and states of some models to where later runs find them."""
        if self.folder is None:
            return
        target.mkdir(parents=True, exist_ok=True)
        for file in self.folder.glob("*.json"):
            with suppress(OSError, ValueError, KeyError, TypeError):
                if json.loads(file.read_text(encoding="utf-8"))["key"]["model"] in identities:
                    file.replace(target / file.name)
        states = self.states_folder or self.folder
        for file in states.glob(f"*{STATES}") if states != target else ():
            with suppress(OSError):
                shutil.move(file, target / file.name)

    def _folders(self) -> list[Path]:
        return [*([] if self.folder is None else [self.folder]), *self.shared]


def drop_oldest(folder: Path, most_bytes: int) -> None:
    """Keep kept figures below a size; what was used longest ago goes first."""
    files: list[tuple[float, int, Path]] = []
    for file in folder.rglob("*"):
        with suppress(OSError):
            if file.is_file():
                state = file.stat()
                files.append((max(state.st_atime, state.st_mtime), state.st_size, file))
    total = sum(size for _, size, _ in files)
    for _, size, file in sorted(files, key=lambda entry: entry[0]):
        if total <= most_bytes:
            return
        with suppress(OSError):
            file.unlink()
            total -= size


def digest(key: Key) -> str:
    """Of a key, for file names."""
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()


def versions() -> dict[str, str]:
    """Of the packages that figures depend on."""
    found: dict[str, str] = {}
    for name in VERSIONS:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def replace_text(file: Path, text: str) -> None:
    """Write a file so that whoever reads it meanwhile has all of the old or of the new."""
    handle, name = tempfile.mkstemp(dir=file.parent, suffix=".new")
    with os.fdopen(handle, "w", encoding="utf-8") as written:
        written.write(text)
    Path(name).replace(file)


def _read(file: Path, key: Key) -> KnownFigures | None:
    try:
        whole = json.loads(file.read_text(encoding="utf-8"))
        if whole["key"] != json.loads(json.dumps(key)):
            return None
        return KnownFigures(dict(whole["document"]), dict(whole["origin"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
