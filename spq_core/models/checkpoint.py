"""A model folder's weights: which tensor is in which file, read a few at a time."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from spq_core.errors import ArtifactError, UnsafeModelError
from spq_core.models.model_folder import without_weights
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
        stored = self.place_of(name)
        if stored is None:
            raise ArtifactError(f"{self.folder.name}: the weight files have no tensor {name!r}")
        return stored

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
        by_file: dict[str, list[tuple[str, str]]] = {}
        for name in names:
            stored = self.stored_name(name)
            by_file.setdefault(self.tensors[stored].file, []).append((name, stored))
        found: dict[str, Tensor] = {}
        for file, members in by_file.items():
            try:
                with safe_open(self.folder / file, framework="pt", device=self.device) as handle:
                    found.update({name: handle.get_tensor(stored) for name, stored in members})
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
