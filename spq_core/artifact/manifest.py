"""The manifest of an artifact: what was done, and the digest of every file. Free of torch."""

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from spq_core.errors import ArtifactError, DigestMismatchError
from spq_core.formats.profiles.registry import ProfileName

MANIFEST_FILE = "compression_manifest.json"
CARD_FILE = "README.md"
BESIDE_FOLDER = "directions"
"""Where an artifact keeps what is none of the weights that are loaded: all directions of its matrices, for other sizes."""
DEPTH = 2
"""Parts of a file's name: at most one subfolder."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FileEntry(_Part):
    """One file of the artifact."""

    bytes: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Source(_Part):
    """The model that was compressed."""

    name: str
    """Hub id, or the folder's name."""
    revision: str | None = None
    """Commit of the Hub repository."""
    dtype: str
    bytes: int
    parameters: int


class Manifest(_Part):
    """Contents of `compression_manifest.json`.

    Nothing in it depends on the clock or the machine, so equal runs give equal manifests.
    """

    schema_version: Literal[1] = 1
    profile: ProfileName = "compact"
    source: Source
    family: str
    recipe: dict[str, Any]
    recipe_sha256: str
    calibration: dict[str, Any] | None
    modules: list[dict[str, Any]]
    versions: dict[str, str]
    files: dict[str, FileEntry]
    """Every file but this one and the model card."""


def read_manifest(folder: Path) -> Manifest:
    """Read a folder's manifest.

    Raises:
        ArtifactError: there is none, or it is malformed or of an unknown schema version.
    """
    path = folder / MANIFEST_FILE
    if not path.is_file():
        raise ArtifactError(
            f"{folder.name} has no {MANIFEST_FILE}; it is not a compressed artifact"
        )
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        remedy = "; a newer package wrote it: upgrade" if where == "schema_version" else ""
        raise ArtifactError(f"{MANIFEST_FILE}: {where}: {first['msg']}{remedy}") from None


def verify_files(folder: Path, manifest: Manifest) -> None:
    """Compare every listed file with its digest.

    Raises:
        ArtifactError: a file is missing.
        DigestMismatchError: a file holds other bytes than the manifest lists.
    """
    unlisted = {path.name for path in folder.glob("*.safetensors")} - set(manifest.files)
    if unlisted:
        raise ArtifactError(
            f"{', '.join(sorted(unlisted))}: not listed in the manifest, but transformers might load "
            "it instead of the artifact's weights; remove it"
        )
    for name, entry in manifest.files.items():
        path = folder / name
        if not is_inside(name) or not path.is_file():
            raise ArtifactError(
                f"{name}: listed in the manifest but missing; fetch the artifact again"
            )
        verify_file(path, entry)


def verify_file(path: Path, entry: FileEntry) -> None:
    """Compare a file with its digest.

    Raises:
        DigestMismatchError: it holds other bytes.
    """
    actual = file_sha256(path)
    if actual != entry.sha256:
        raise DigestMismatchError(path.name, entry.sha256, actual)


def artifact_files(folder: Path) -> dict[str, Path]:
    """All files of an artifact's folder by their names in it, with `/` for those in a subfolder."""
    paths = sorted(path for path in folder.rglob("*") if not path.is_dir() or path.is_symlink())
    return {path.relative_to(folder).as_posix(): path for path in paths}


def beside_file(path: str) -> str:
    """Name of the file of what is stored beside the weights of the block at `path`."""
    return f"{BESIDE_FOLDER}/{path}.safetensors"


def is_inside(name: str) -> bool:
    """Whether a name is that of a file in the folder or in one subfolder of it."""
    parts = name.split("/")
    plain = all(part not in {"", ".", ".."} and "\\" not in part for part in parts)
    return plain and len(parts) <= DEPTH


def file_entry(path: Path) -> FileEntry:
    """Size and digest of a file."""
    return FileEntry(bytes=path.stat().st_size, sha256=file_sha256(path))


def known_sha256(path: Path) -> str:
    """`file_sha256` of a file that only others change: it is read again when its size or time has changed."""
    real = path.resolve()
    state = real.stat()
    return _sha256_once(real, state.st_ino, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=4096)
def _sha256_once(path: Path, _inode: int, _size: int, _changed_ns: int) -> str:
    return file_sha256(path)


def file_sha256(path: Path) -> str:
    """Hex sha256 of a file, read in blocks."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
