"""A copy of a model folder as a run reads it: links to weights, and settings without leftovers.

Everything behind it (transformers, tokenizers, what is carried into the artifact) sees only files that
were looked at.
"""

import codecs
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from spq_core.models.gguf_checkpoint import write_gguf_copy
from spq_core.models.links import refuse_dangling_links
from spq_core.models.model_folder import (
    SETTINGS_FILES,
    check_model_folder,
    check_settings,
    read_json_object,
    side_files,
)
from spq_core.models.quantized.forms import is_quantized
from spq_core.models.quantized.widened_copy import write_widened
from spq_core.models.reading import AS_IT_IS, Reading
from spq_core.models.unsafe_keys import without_leftovers
from spq_core.models.weight_files import INDEX_FILE, weight_files


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceModel:
    """A local folder and where it came from."""

    folder: Path
    name: str
    revision: str | None = None
    reading: Reading = AS_IT_IS
    """What of the folder is the model; its subfolder is no part of it any more."""
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
def clean_copy(source: SourceModel, scratch: Path | None = None) -> Iterator[SourceModel]:
    """Judge a model folder, and give a copy of it under the same name while the block lasts.

    Weights are linked; those that are quantized already, where they may be, are written anew in 16 bits.

    Args:
        scratch: an existing folder for the copy, with room for such weights; the machine's own by default.

    Raises:
        UnsafeModelError, UnsupportedModelError: it is not one we are willing to open.
        ArtifactError: the header of a weight file is malformed.
        DiskSpaceError: widened weights would not fit.
    """
    if source.is_clean:
        yield source
        return
    folder = source.folder
    refuse_dangling_links(folder)
    with _folder_in(scratch) as parent:
        copy = parent / (folder.resolve().name or "model")
        copy.mkdir()
        make = _copy_folder if source.reading.file is None else write_gguf_copy
        notes = make(folder, source.reading, copy)
        yield replace(source, folder=copy, is_clean=True, notes=tuple(notes), original=folder)


@contextmanager
def _folder_in(scratch: Path | None) -> Iterator[Path]:
    """An empty folder that goes at the end; in `scratch` also one that a killed run left."""
    if scratch is None:
        with tempfile.TemporaryDirectory(prefix="spq-source-") as name:
            yield Path(name)
        return
    folder = scratch / "clean-copy"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _copy_folder(folder: Path, reading: Reading, copy: Path) -> list[str]:
    """Link and write what a run reads."""
    check_model_folder(folder, reading)
    config = read_json_object(folder / "config.json")
    weights = [INDEX_FILE, *weight_files(folder)] if is_quantized(config) else []
    notes = []
    for name in used_files(folder):
        target = copy / name
        target.parent.mkdir(exist_ok=True)
        if name in weights:
            continue
        if name == INDEX_FILE:
            _write_index(folder / name, target)
        elif name in SETTINGS_FILES:
            notes += _write_settings(folder / name, target, reading)
        else:
            target.symlink_to((folder / name).resolve())
    if weights:
        notes.append(write_widened(folder, config, copy))
    return notes


def used_files(folder: Path) -> list[str]:
    """Names of all files of a folder that a run reads or carries along."""
    index = [INDEX_FILE] if (folder / INDEX_FILE).is_file() else []
    return ["config.json", *weight_files(folder), *index, *_without(side_files(folder))]


def _without(names: list[str]) -> list[str]:
    return [name for name in names if name != "config.json"]


def _write_index(source: Path, target: Path) -> None:
    """Copy the index with the key that transformers fails without."""
    document = read_json_object(source)
    target.write_text(json.dumps({"metadata": {}, **document}), encoding="utf-8")


def _write_settings(source: Path, target: Path, reading: Reading) -> list[str]:
    """Copy a settings file without leftovers; as it is where it has none."""
    document = read_json_object(source)
    cleaned = check_settings(source.name, document, reading)
    if cleaned == document:
        target.write_bytes(source.read_bytes().removeprefix(codecs.BOM_UTF8))
        return []
    target.write_text(json.dumps(cleaned, indent=1, ensure_ascii=False), encoding="utf-8")
    left_out = without_leftovers(document).left_out
    return [f"{source.name}: {key} left out, it is not needed here" for key in left_out]
