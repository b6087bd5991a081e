"""A copy of a model folder as a run reads it: links to weights, and settings without leftovers.

Everything behind it (transformers, tokenizers, what is carried into the artifact) sees only files that
were looked at. Free of torch.
"""

import codecs
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from spq_core.errors import UnsafeModelError
from spq_core.models.model_folder import (
    SETTINGS_FILES,
    SIDE_FOLDERS,
    check_model_folder,
    check_settings,
    is_side_file,
    names_in,
    read_json_object,
    side_files,
)
from spq_core.models.unsafe_keys import without_leftovers
from spq_core.models.weight_files import INDEX_FILE, weight_files


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceModel:
    """A local folder and where it came from."""

    folder: Path
    name: str
    revision: str | None = None
    is_clean: bool = False
    """Whether the folder is a clean copy."""
    notes: tuple[str, ...] = ()
    """What the copy leaves out, in words."""
    original: Path | None = None
    """What it is a copy of."""

    @property
    def lost_tokenizer_code(self) -> bool:
        """Whether the copy leaves out code that the tokenizer's settings name."""
        return any(note.startswith("tokenizer_config.json: auto_map") for note in self.notes)


@contextmanager
def clean_copy(source: SourceModel) -> Iterator[SourceModel]:
    """Judge a model folder, and give a copy of it under the same name while the block lasts.

    Raises:
        UnsafeModelError, UnsupportedModelError: it is not one we are willing to open.
        ArtifactError: the header of a weight file is malformed.
    """
    if source.is_clean:
        yield source
        return
    folder = source.folder
    _refuse_dangling_links(folder)
    check_model_folder(folder)
    with tempfile.TemporaryDirectory(prefix="spq-source-") as parent:
        copy = Path(parent) / (folder.resolve().name or "model")
        copy.mkdir()
        notes: list[str] = []
        for name in used_files(folder):
            target = copy / name
            target.parent.mkdir(exist_ok=True)
            if name == INDEX_FILE:
                _write_index(folder / name, target)
            elif name in SETTINGS_FILES:
                notes += _write_settings(folder / name, target)
            else:
                target.symlink_to((folder / name).resolve())
        yield replace(source, folder=copy, is_clean=True, notes=tuple(notes), original=folder)


def used_files(folder: Path) -> list[str]:
    """Names of all files of a folder that a run reads or carries along."""
    index = [INDEX_FILE] if (folder / INDEX_FILE).is_file() else []
    return ["config.json", *weight_files(folder), *index, *_without(side_files(folder))]


def _refuse_dangling_links(folder: Path) -> None:
    """A link to nothing would be a file that silently is not there.

    Raises:
        UnsafeModelError: naming it.
    """
    if not folder.is_dir():
        return
    for name in names_in(folder):
        path = folder / name
        if _may_be_used(name) and path.is_symlink() and not path.exists():
            raise UnsafeModelError(
                "unsafe_link",
                f"{folder.name}: {name} is a link to a file that does not exist; restore the file, or remove the link",
            )


def _may_be_used(name: str) -> bool:
    known = name in {"config.json", INDEX_FILE} or is_side_file(name)
    return known or name.endswith(".safetensors") or name in SIDE_FOLDERS


def _without(names: list[str]) -> list[str]:
    return [name for name in names if name != "config.json"]


def _write_index(source: Path, target: Path) -> None:
    """Copy the index with the key that transformers fails without."""
    document = read_json_object(source)
    target.write_text(json.dumps({"metadata": {}, **document}), encoding="utf-8")


def _write_settings(source: Path, target: Path) -> list[str]:
    """Copy a settings file without leftovers; as it is where it has none."""
    document = read_json_object(source)
    cleaned = check_settings(source.name, document)
    if cleaned == document:
        target.write_bytes(source.read_bytes().removeprefix(codecs.BOM_UTF8))
        return []
    target.write_text(json.dumps(cleaned, indent=1, ensure_ascii=False), encoding="utf-8")
    left_out = without_leftovers(document).left_out
    return [f"{source.name}: {key} left out, it is not needed here" for key in left_out]


def refuse_links_outside(folder: Path, allowed: Sequence[Path]) -> None:
    """Refuse a folder with files that are really elsewhere.

    Who may write to one model folder must not choose which other files of the machine a run reads, and
    publishes. A snapshot in a Hub cache links to the `blobs` beside it, which is fine.

    Args:
        allowed: folders that files may really lie in, too.

    Raises:
        UnsafeModelError: naming the file.
    """
    home = folder.resolve()
    homes = [home, *(path.resolve() for path in allowed)]
    if home.parent.name == "snapshots":
        homes.append(home.parent.parent / "blobs")
    for name in names_in(folder):  # before any of them is read
        if not _may_be_used(name):
            continue
        real = Path(os.path.realpath(folder / name))
        if not any(real.is_relative_to(one) for one in homes):
            raise UnsafeModelError(
                "unsafe_link",
                f"{folder.name}: {name} is a link to a file outside the model folder; put the file itself "
                "there, or have the operator add the folder it lies in to SPQ_MODEL_DIRS",
            )
