"""Weight files of a folder and their headers, read without torch and without trusting them.

A safetensors file is an 8-byte little-endian header length, a JSON header, then raw bytes
(https://huggingface.co/docs/safetensors). The limits below refuse files that are made to exhaust
memory before the first tensor is read.
"""

import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from spq_core.errors import ArtifactError

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
LENGTH_BYTES = 8
MAX_HEADER_BYTES = 10_000_000
MAX_TENSORS = 100_000
MAX_SIZE = 1 << 48
MAX_AXES = 8
PAIR = 2
POINTER = b"version https://git-lfs"
FILE_NAME = re.compile(r"[A-Za-z0-9][\w.\- ()+]{0,200}\.safetensors", re.ASCII)
TENSOR_NAME = re.compile(r"[A-Za-z0-9_.\-]{1,256}")
ITEM_BYTES = {
    "F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2,
    "U16": 2, "I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class WeightHeader:
    """What a header says about one tensor."""

    file: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def n_elements(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def n_bytes(self) -> int:
        """Stored bytes."""
        return self.n_elements * ITEM_BYTES[self.dtype]


def weight_files(folder: Path) -> tuple[str, ...]:
    """Names of the files transformers would load the folder's weights from, in order.

    That is `model.safetensors` if it exists, else what the index names; other safetensors files
    (adapters, say) are not the model's. Each indexed file must lie in the folder itself.

    Raises:
        ArtifactError: the index is malformed, or names a file that is not there.
    """
    if (folder / SINGLE_FILE).is_file():
        return (SINGLE_FILE,)
    index = folder / INDEX_FILE
    if not index.is_file():
        return ()
    files = files_of_index(index.read_bytes())
    for file in files:
        if not (folder / file).is_file():
            raise ArtifactError(
                f"{INDEX_FILE} names {file!r}, which is missing; fetch the model again"
            )
    return tuple(files)


def files_of_index(text: bytes) -> list[str]:
    """Names of the weight files in an index's text, ascending.

    Raises:
        ArtifactError: it is not an index, or names what cannot be a weight file beside it.
    """
    try:
        files = set(json.loads(text.decode("utf-8"))["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ArtifactError(f"{INDEX_FILE} is not a valid index; fetch the model again") from None
    for file in files:
        if not isinstance(file, str) or not FILE_NAME.fullmatch(file):
            raise ArtifactError(
                f"{INDEX_FILE} names {str(file)[:200]!r}, which is not a file of this folder"
            )
    return sorted(files)


def gguf_files(folder: Path) -> tuple[Path, ...]:
    """A folder's GGUF files; an artifact of profile gguf has one, and no other weights."""
    return tuple(sorted(folder.glob("*.gguf")))


def read_header(path: Path) -> dict[str, WeightHeader]:
    """Read and check one file's header.

    Raises:
        ArtifactError: naming the file and what is wrong with it.
    """
    size = path.stat().st_size
    with path.open("rb") as handle:
        length = int.from_bytes(handle.read(LENGTH_BYTES), "little")
        if length > min(MAX_HEADER_BYTES, size - LENGTH_BYTES):
            handle.seek(0)
            pointer = pointer_instead(handle.read(len(POINTER)))
            if pointer:
                raise ArtifactError(f"{path.name} {pointer}")
            raise ArtifactError(f"{path.name}: not a safetensors file, or cut short ({size} bytes)")
        raw = handle.read(length)
    header = parse_header(path.name, raw)
    spans = [_span(path.name, name, entry) for name, entry in header.items()]
    _check_spans(path.name, spans, size - LENGTH_BYTES - length)
    return {name: tensor for name, tensor, _, _ in spans}


def pointer_instead(text: bytes) -> str:
    """What is wrong with a file that git-lfs has not replaced yet; nothing with any other."""
    if not text.startswith(POINTER):
        return ""
    return "is a Git LFS pointer instead of the file itself; run `git lfs pull` in the repository"


def parse_header(file: str, raw: bytes) -> dict[str, Any]:
    """The entries of a header by tensor, not yet checked.

    Raises:
        ArtifactError: it is not a JSON object, or has too many entries.
    """
    try:
        header = json.loads(raw, object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError):
        raise ArtifactError(f"{file}: the safetensors header is not valid JSON") from None
    if not isinstance(header, dict) or len(header) > MAX_TENSORS:
        raise ArtifactError(f"{file}: the safetensors header is malformed or has too many tensors")
    header.pop("__metadata__", None)
    return header


def stored_bytes(folder: Path, extra: tuple[str, ...] = ()) -> int:
    """Bytes on disk of the weight files, their index, and the `extra` files that exist; of a folder without such, of its GGUF file."""
    weights = weight_files(folder) or tuple(path.name for path in gguf_files(folder))
    names = [*weights, INDEX_FILE, *extra]
    return sum((folder / name).stat().st_size for name in names if (folder / name).is_file())


def sixteen_bit_bytes(tensors: Iterable[WeightHeader], stored: int) -> float:
    """Bytes that weight files would take with 16 bits a weight at most: what ratios are against.

    Args:
        stored: bytes of the files, headers and index included, as they are.
    """
    return stored - sum(one.n_elements * max(0, ITEM_BYTES[one.dtype] - 2) for one in tensors)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in pairs}) != len(pairs):
        raise ValueError("duplicate key")
    return dict(pairs)


def checked_tensor(file: str, name: str, dtype: object, shape: object) -> WeightHeader:
    """What a header says about one tensor, if it can be that.

    Raises:
        ArtifactError: naming the file and the tensor.
    """
    if (
        isinstance(dtype, str)
        and re.fullmatch(r"[A-Z][A-Z0-9_]{1,15}", dtype)
        and dtype not in ITEM_BYTES
    ):
        raise ArtifactError(
            f"{file}: {name[:80]!r} is stored as {dtype}, which is not compressed; name the model it was made from"
        )
    known = isinstance(dtype, str) and dtype in ITEM_BYTES
    if not known or not _sizes(shape) or not TENSOR_NAME.fullmatch(name):
        raise ArtifactError(f"{file}: the header's entry for {name[:80]!r} is malformed")
    assert isinstance(dtype, str) and isinstance(shape, list)  # noqa: S101, PT018 - just seen
    tensor = WeightHeader(file, dtype, tuple(shape))
    if tensor.n_elements > MAX_SIZE:
        raise ArtifactError(f"{file}: {name[:80]!r} has more than {MAX_SIZE} elements")
    return tensor


def _span(file: str, name: str, entry: object) -> tuple[str, WeightHeader, int, int]:
    """Check one tensor's entry and return it with its byte range."""
    fields: dict[str, Any] = entry if isinstance(entry, dict) else {}
    tensor = checked_tensor(file, name, fields.get("dtype"), fields.get("shape"))
    offsets: Any = fields.get("data_offsets")
    if not _sizes(offsets) or len(offsets) != PAIR:
        raise ArtifactError(f"{file}: the header's entry for {name[:80]!r} is malformed")
    start, stop = offsets
    if tensor.n_bytes != stop - start:
        raise ArtifactError(
            f"{file}: {name!r} has shape {list(tensor.shape)} but {stop - start} bytes"
        )
    return name, tensor, start, stop


def _sizes(value: Any) -> bool:
    """Whether this is a short list of plausible non-negative integers."""
    return (
        isinstance(value, list)
        and len(value) <= MAX_AXES
        and all(type(one) is int and 0 <= one < MAX_SIZE for one in value)
    )


def _check_spans(file: str, spans: list[tuple[str, WeightHeader, int, int]], size: int) -> None:
    """Byte ranges must cover the data part exactly, without overlap or hole."""
    end = 0
    for name, _, start, stop in sorted(spans, key=lambda span: (span[2], span[3])):
        if start != end:
            raise ArtifactError(f"{file}: the bytes of {name!r} overlap others or leave a hole")
        end = stop
    if end != size:
        raise ArtifactError(
            f"{file}: the header lists {end} bytes, the file holds {size}; it was cut short or extended"
        )


def flush_to_disk(file: Path) -> None:
    """Wait until a file's bytes would survive the machine's end."""
    handle = os.open(file, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
