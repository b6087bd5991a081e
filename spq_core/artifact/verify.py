"""Weight files against the model they are loaded into, before the first tensor is read.

transformers fills what it does not find with random numbers and warns. For an artifact that is never
meant, so every tensor must be there, in its shape, in a file whose bytes are the manifest's.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor, nn

from spq_core.artifact.manifest import MANIFEST_FILE, FileEntry, read_manifest, verify_file
from spq_core.errors import ArtifactError
from spq_core.models.weight_files import WeightHeader, read_header

_STORED_DTYPES = {"torch.int8": "I8", "torch.uint8": "U8"}


def check_stored(model: nn.Module, files: Iterable[Path], tied: Mapping[str, str]) -> None:
    """Refuse an artifact whose files are not what its layers need.

    Args:
        model: with its final layers, on any device.
        files: the weight files; where a manifest lies beside them, their bytes are compared with it.
        tied: names of tensors that are not stored, as they are the same as others.

    Raises:
        ArtifactError: naming the tensor, or the file, and what is wrong with it.
        DigestMismatchError: a file holds other bytes than the manifest lists.
    """
    stored: dict[str, WeightHeader] = {}
    for file in files:
        _check_digest(file)
        stored |= read_header(file)
    wanted = {name: tensor for name, tensor in model.state_dict().items() if name not in tied}
    for name, tensor in wanted.items():
        if name not in stored:
            raise ArtifactError(f"the weight files have no {name!r}; fetch the artifact again")
        _check_tensor(name, tensor, stored[name])
    for name, header in stored.items():
        if name not in wanted and name not in tied:
            raise ArtifactError(
                f"{header.file}: unexpected tensor {name!r}: weights and config.json come from different artifacts"
            )


def _check_tensor(name: str, tensor: Tensor, header: WeightHeader) -> None:
    if header.shape != tuple(tensor.shape):
        raise ArtifactError(
            f"{header.file}: {name!r} has shape {list(header.shape)}, config.json asks for "
            f"{list(tensor.shape)}"
        )
    dtype = _STORED_DTYPES.get(str(tensor.dtype))
    if dtype is not None and header.dtype != dtype:
        raise ArtifactError(
            f"{header.file}: {name!r} has dtype {header.dtype}, it should be {dtype}"
        )


def _check_digest(file: Path) -> None:
    """Compare a file with the manifest beside it, if there is one."""
    folder = file.parent
    if not (folder / MANIFEST_FILE).is_file():
        return  # from_pretrained of a Hub id fetches weights and configuration alone
    entry: FileEntry | None = read_manifest(folder).files.get(file.name)
    if entry is not None:
        verify_file(file, entry)
