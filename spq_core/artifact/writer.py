"""Write an artifact folder block by block; it takes its final name only when it is complete."""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Self

import torch
from safetensors.torch import save_file
from torch import nn

from spq_core.artifact.manifest import (
    BESIDE_FOLDER,
    CARD_FILE,
    MANIFEST_FILE,
    Manifest,
    artifact_files,
    beside_file,
    file_entry,
)
from spq_core.artifact.tensors import distinct_tensors
from spq_core.errors import NumericalError, OutputExistsError, SpqError
from spq_core.formats.exact_parts import exact_names
from spq_core.formats.layer import Layout
from spq_core.formats.layouts import parse_layouts
from spq_core.formats.profiles.format import BYTES_PER_MATRIX, FIXED_BYTES
from spq_core.formats.profiles.profile import Profile
from spq_core.formats.profiles.stored_model import StoredModel
from spq_core.models.finite import all_finite
from spq_core.models.model_folder import side_files
from spq_core.models.skeleton import Skeleton
from spq_core.models.weight_files import INDEX_FILE, flush_to_disk

NO_CHANGES: Mapping[str, Any] = MappingProxyType({})


def no_name(_name: str) -> bool:
    """None is."""
    return False


def require_unused(folder: Path) -> None:
    """Refuse to write where something is.

    Raises:
        OutputExistsError: the folder exists and is not empty.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputExistsError(str(folder))


def require_writable(profile: Profile, source: Path, skeleton: Skeleton) -> None:
    """Find out before any work whether a model's tensors and its tokenizer have a place in a profile's file.

    Raises:
        UnsupportedModelError, TokenizerError: one has not.
    """
    if profile.single_file:
        import_module(profile.writing).require_places(source, skeleton)


def overhead_bytes(profile: Profile, source: Path, skeleton: Skeleton, n_matrices: int) -> int:
    """What stands beside tensors in an artifact, for byte targets."""
    if not profile.single_file:
        return FIXED_BYTES + BYTES_PER_MATRIX * n_matrices
    found: int = import_module(profile.writing).metadata_bytes(source, skeleton)
    return found


@dataclass(slots=True)
class ArtifactWriter:
    """A folder under construction. Use as a context manager: an error removes what was written."""

    target: Path
    n_shards: int
    dtype: torch.dtype
    """Of floating-point tensors other than scales."""
    profile: Profile
    resumed: bool = False
    """Go on with what a killed run has written."""
    layouts: dict[str, Layout] = field(default_factory=dict)
    foreign: Callable[[str], bool] = no_name
    """Which tensors outside decoder layers are carried along bit by bit."""
    weight_map: dict[str, str] = field(default_factory=dict)
    tensor_bytes: int = 0
    _stored: StoredModel | None = None
    """All of it, once config.json is written."""

    @property
    def folder(self) -> Path:
        """Where files go until the artifact is complete."""
        return self.target.with_name(f"{self.target.name}.partial")

    def __enter__(self) -> Self:
        require_unused(self.target)
        if not self.resumed:
            shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None and issubclass(kind, SpqError):  # after others a run can be resumed
            shutil.rmtree(self.folder, ignore_errors=True)

    def write_block(self, number: int, path: str, block: nn.Module, original: nn.Module) -> None:
        """Write a finished block as shard `number` (from 1) and note how it differs from `original`."""
        self.layouts.update(self._writing().store_block(path, block, original, self.dtype))
        tensors: dict[str, torch.Tensor] = {}
        foreign = {name for name in block.state_dict() if not path and self.foreign(name)}
        exact = exact_names(block) | foreign
        for name, tensor in distinct_tensors(block).tensors.items():
            as_it_is = name in exact or not tensor.is_floating_point()
            stored = tensor if as_it_is else tensor.to(self.dtype)
            if stored.is_floating_point() and not all_finite(stored):
                raise NumericalError("artifact", f"{path}.{name}" if path else name)
            tensors[f"{path}.{name}" if path else name] = stored.contiguous()
        file = f"model-{number:05d}-of-{self.n_shards:05d}.safetensors"
        _write(tensors, self.folder / file)
        self.weight_map.update(dict.fromkeys(tensors, file))
        self.tensor_bytes += sum(tensor.nbytes for tensor in tensors.values())

    def write_beside(self, path: str, tensors: dict[str, torch.Tensor]) -> None:
        """Write what belongs to a block and is none of the weights that are loaded.

        Raises:
            NumericalError: a value is not finite.
        """
        for name, tensor in tensors.items():
            if not all_finite(tensor):
                raise NumericalError("artifact", f"{path}.{name}")
        (self.folder / BESIDE_FOLDER).mkdir(exist_ok=True)
        whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
        _write(whole, self.folder / beside_file(path))

    def state(self) -> dict[str, Any]:
        """What is written so far, as JSON values."""
        return {
            "layouts": {name: layout.model_dump() for name, layout in self.layouts.items()},
            "weight_map": self.weight_map,
            "tensor_bytes": self.tensor_bytes,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what a killed run has written."""
        self.layouts.update(parse_layouts(state["layouts"]))
        self.weight_map.update(state["weight_map"])
        self.tensor_bytes = state["tensor_bytes"]

    def write_index(self) -> None:
        """Write the index that names each tensor's shard."""
        index = {
            "metadata": {"total_size": self.tensor_bytes},
            "weight_map": dict(sorted(self.weight_map.items())),
        }
        self.write_json(INDEX_FILE, index)

    def write_config(
        self,
        skeleton: Skeleton,
        *,
        head_shares_codes: bool,
        changes: Mapping[str, Any] = NO_CHANGES,
    ) -> None:
        """Write config.json, when all blocks are written.

        Args:
            changes: entries of the text part's that are others than the source's.
        """
        stored = StoredModel(skeleton, self.layouts, self.dtype, head_shares_codes, changes)
        self.write_json("config.json", self._writing().config(stored))
        self._stored = stored

    def _writing(self) -> Any:
        return import_module(self.profile.writing)

    def carry_files(self, source: Path) -> None:
        """Copy tokenizer, chat templates, generation settings and terms from the source folder."""
        for name in side_files(source):
            (self.folder / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(source / name, self.folder / name)

    def finish(self, manifest: Manifest) -> None:
        """Write the manifest over all files and give the folder its final name."""
        if self.profile.single_file:
            self._writing().finish(self.folder, self._stored, manifest.source.name, self.dtype)
        files = {
            name: file_entry(path)
            for name, path in artifact_files(self.folder).items()
            if name not in {MANIFEST_FILE, CARD_FILE}
        }
        complete = manifest.model_copy(update={"files": files})
        self.write_json(MANIFEST_FILE, complete.model_dump(mode="json"))
        if self.target.exists():
            self.target.rmdir()
        os.replace(self.folder, self.target)  # noqa: PTH105

    def write_json(self, name: str, document: object) -> None:
        """Write a document of the artifact."""
        text = json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False)
        (self.folder / name).write_text(text + "\n", encoding="utf-8")


def _write(tensors: dict[str, torch.Tensor], path: Path) -> None:
    path.unlink(missing_ok=True)  # a frozen predecessor may have it open
    save_file(tensors, path, metadata={"format": "pt"})
    with path.open("rb") as written:
        os.fchmod(written.fileno(), 0o644)  # by name a confined run may not
    flush_to_disk(path)


def round_floats(
    block: nn.Module, dtype: torch.dtype, foreign: Callable[[str], bool] = no_name
) -> None:
    """Give a finished block the values it will be stored with.

    Low-rank factors are computed in float32. Rounded to bfloat16 they can make another model of a
    fragile one, so what comes behind them, and what is compared with them, has to see that.
    """
    exact = exact_names(block)
    for name, parameter in block.named_parameters():
        rounds = parameter.is_floating_point() and name not in exact and not foreign(name)
        if rounds and parameter.dtype != dtype:
            rounded = parameter.data.to(dtype).to(parameter.dtype)
            if not torch.equal(rounded, parameter.data):  # else the block is as it was
                parameter.data = rounded
