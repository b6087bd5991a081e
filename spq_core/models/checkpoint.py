"""A model folder's weights: which tensor is in which file, read a few at a time."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PreTrainedModel

from spq_core.errors import ArtifactError, UnsafeModelError
from spq_core.models.model_folder import without_weights
from spq_core.models.origins import Origin, origins_of, shapes_of
from spq_core.models.weight_files import WeightHeader, read_header, weight_files

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}

FORMER_NAMES = {"lm_head.weight": "embed_out.weight"}
"""Names in files that transformers has since given up for others (GPT-NeoX)."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The safetensors files of one folder. Holds no tensor itself."""

    folder: Path
    tensors: Mapping[str, WeightHeader]
    """Tensor name → file, dtype and shape, read from the files' headers."""
    device: str = "cpu"
    """Where tensors go that are read."""
    origins: Mapping[str, Origin] = field(default_factory=dict)
    """Tensors of a model that are stored under other names or in other pieces, by the model's name."""

    def of_model(self, model: PreTrainedModel) -> "Checkpoint":
        """The same, with what transformers would convert while it loads this model."""
        if all(self.place_of(name) is not None for name in model.state_dict()):
            return self
        found = origins_of(model, self.tensors)
        return replace(
            self, origins={name: one for name, one in found.items() if self.place_of(name) is None}
        )

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that most bytes are stored in."""
        sizes: dict[str, int] = {}
        for header in self.tensors.values():
            if header.dtype not in DTYPES:
                continue
            sizes[header.dtype] = sizes.get(header.dtype, 0) + header.n_bytes
        return DTYPES[max(sizes, key=lambda name: sizes[name])]

    @property
    def parameters(self) -> int:
        """Number of stored parameters."""
        return sum(header.n_elements for header in self.tensors.values())

    def stored_name(self, name: str) -> str:
        """The name of a model's tensor in the files: some leave out the base model's prefix.

        Raises:
            ArtifactError: there is no such tensor.
        """
        stored = self.stored_names(name)
        if not stored:
            raise ArtifactError(f"{self.folder.name}: the weight files have no tensor {name!r}")
        return stored[0]

    def stored_names(self, name: str) -> tuple[str, ...]:
        """All that a model's tensor is made of; none if the files do not have it."""
        if name in self.origins:
            return self.origins[name].conversion.stored
        place = self.place_of(name)
        return () if place is None else (place,)

    def shapes(self, names: Iterable[str]) -> dict[str, tuple[int, ...]]:
        """Of a model's tensors that the files have.

        Raises:
            ArtifactError: what one is made of does not go together.
        """
        found: dict[str, tuple[int, ...]] = {}
        made: dict[str, dict[str, Tensor]] = {}
        for name in names:
            origin = self.origins.get(name)
            if origin is None:
                found[name] = self.tensors[self.stored_name(name)].shape
                continue
            conversion = origin.conversion
            try:
                if conversion.first not in made:
                    parts = {one: self.tensors[one].shape for one in conversion.stored}
                    made[conversion.first] = shapes_of(conversion, parts)
                found[name] = tuple(origin.of(made[conversion.first]).shape)
            except (RuntimeError, ValueError, IndexError, KeyError) as error:
                raise ArtifactError(
                    f"{self.folder.name}: {name!r} cannot be made of {conversion.stored[0]!r} and its like: {error}"
                ) from None
        return found

    def place_of(self, name: str) -> str | None:
        """The same; None if there is no such tensor."""
        without_base = name.partition(".")[2]
        candidates = (name, without_base, FORMER_NAMES.get(name, name))
        return next((one for one in candidates if one in self.tensors), None)

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Map the named tensors into memory, in their stored dtype.

        Raises:
            ArtifactError: a name is missing or a file cannot be read.
        """
        wanted = list(names)
        converted = [name for name in wanted if name in self.origins]
        plain = [name for name in wanted if name not in self.origins]
        stored = {self.stored_name(name) for name in plain}
        stored |= {one for name in converted for one in self.origins[name].conversion.stored}
        tensors = self._read_stored(stored)
        found = {name: tensors[self.stored_name(name)] for name in plain}
        made: dict[str, dict[str, Tensor]] = {}  # one conversion makes several, experts above all
        for name in converted:
            origin = self.origins[name]
            if origin.conversion.first not in made:
                made[origin.conversion.first] = origin.conversion.made_of(tensors)
            found[name] = origin.of(made[origin.conversion.first])
        return found

    def _read_stored(self, names: Iterable[str]) -> dict[str, Tensor]:
        by_file: dict[str, list[str]] = {}
        for name in sorted(names):
            by_file.setdefault(self.tensors[name].file, []).append(name)
        found: dict[str, Tensor] = {}
        for file, members in by_file.items():
            try:
                with safe_open(self.folder / file, framework="pt", device=self.device) as handle:
                    found.update({name: handle.get_tensor(name) for name in members})
            except SafetensorError as error:
                raise ArtifactError(f"{file}: {error}") from None
        return found


def open_checkpoint(folder: Path, device: str = "cpu") -> Checkpoint:
    """Read the headers of a folder's safetensors files.

    Args:
        device: where tensors go that are read later.

    Raises:
        UnsafeModelError: the folder has weights only in formats that can run code.
        ArtifactError: a header is malformed, or a tensor has a dtype we cannot compress.
    """
    tensors: dict[str, WeightHeader] = {}
    for file in weight_files(folder):
        tensors.update(read_header(folder / file))
    if not tensors:
        raise without_weights(folder)
    if not any(header.dtype in DTYPES for header in tensors.values()):
        raise UnsafeModelError(
            "already_quantized",
            f"{folder.name} holds no floating-point weights; name its base model",
        )
    return Checkpoint(folder, tensors, device)
