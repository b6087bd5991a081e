"""The `gguf` profile: a block at a time in shards, which become one file when all are there."""

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from spq_core.formats.ggml.linear import GgmlEmbeddingLayout, GgmlLayout
from spq_core.formats.ggml.types import BlockType
from spq_core.formats.profiles.compact.writing import store_block
from spq_core.formats.profiles.gguf.naming import file_name, general_keys, label_of
from spq_core.formats.profiles.stored_model import StoredModel, stock_document
from spq_core.models.gguf.architectures import Architecture, Config
from spq_core.models.gguf.metadata import architecture_of, model_keys
from spq_core.models.gguf.tensors import GgufNames, added, extra_tensors, row_order
from spq_core.models.gguf.tokenizer import tokenizer_keys
from spq_core.models.model_folder import read_json_object
from spq_core.models.skeleton import Skeleton
from spq_core.models.tokenizer import load_tokenizer
from spq_core.models.weight_files import INDEX_FILE, flush_to_disk

__all__ = ["config", "finish", "store_block"]
BLOCKS = ".blocks"
BYTES_PER_TENSOR = 128
"""Name, sizes and alignment, and what a norm takes more in float32."""
POSITIONS = "position_embd.weight"
RAW: dict[torch.dtype, int] = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 30}
"""ggml's numbers of floating-point types."""
VALUE_TYPES = {
    bool: gguf.GGUFValueType.BOOL,
    int: gguf.GGUFValueType.UINT32,
    float: gguf.GGUFValueType.FLOAT32,
    str: gguf.GGUFValueType.STRING,
    list: gguf.GGUFValueType.ARRAY,
}


def config(stored: StoredModel) -> dict[str, Any]:
    """The source's config.json: what hubs read, and what the model is measured by."""
    return stock_document(stored)


def require_places(source: Path, skeleton: Skeleton) -> None:
    """Every tensor has a name in the file, and text would be read as it is.

    Raises:
        UnsupportedModelError, TokenizerError: not so.
    """
    document = skeleton.config.to_dict()
    names = GgufNames(architecture_of(document), skeleton.n_layers)
    shared = f"{skeleton.head_path}.weight" if skeleton.tied else None
    for name in skeleton.model.state_dict():
        if name != shared:  # a tied head is not in the file
            names.of(name)
    _tokenizer(source, document)


class _Entry(NamedTuple):
    """A tensor of the file, and where its bytes are."""

    name: str
    """In the file."""
    file: str
    key: str
    """In the shard."""
    stored: str
    """The model's own name."""
    kind: BlockType | None


def finish(folder: Path, stored: StoredModel, source: str, dtype: torch.dtype) -> None:
    """Make one file of all shards, and remove them. May be called again after a kill.

    Args:
        source: Hub id, or the folder's name.
        dtype: of what is in floating point.
    """
    index = folder / INDEX_FILE
    if not index.is_file() and list(folder.glob("*.gguf")):
        return
    weight_map: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    document: dict[str, Any] = stored.skeleton.config.to_dict() | stock_document(stored)
    architecture = architecture_of(document)
    entries = list(_entries(weight_map, stored, architecture))
    weights = Counter[str]()
    sizes = {"weights": 0, "bits": 0.0}
    for name, layout in stored.layouts.items():
        if isinstance(layout, GgmlLayout) and name.startswith(f"{stored.skeleton.layers_path}."):
            count = layout.n_in * layout.n_out
            weights[layout.type] += count
            sizes["weights"] += count
            sizes["bits"] += count * layout.block_type.bits
    label, number = label_of(weights, sizes["bits"] / max(1, sizes["weights"]), str(dtype))
    target = folder / file_name(source, label)
    part = target.with_suffix(".part")
    writer = gguf.GGUFWriter(part, architecture.name)
    keys = model_keys(document) | general_keys(source, _parameters(stored), number)
    for key, value in (keys | _tokenizer(folder, document)).items():
        if key != "general.architecture":
            writer.add_key_value(key, value, VALUE_TYPES[type(value)])
    _write(writer, folder, entries, architecture, document)
    flush_to_disk(part)
    os.replace(part, target)  # noqa: PTH105
    index.unlink()
    for file in set(weight_map.values()):
        (folder / file).unlink(missing_ok=True)


def metadata_bytes(folder: Path, skeleton: Skeleton) -> int:
    """What a file takes beside tensors, for the most part its tokens.

    Args:
        folder: the source's.
    """
    document = skeleton.config.to_dict()
    size = BYTES_PER_TENSOR * len(skeleton.model.state_dict())
    for key, value in (model_keys(document) | _tokenizer(folder, document)).items():
        values = value if isinstance(value, list) else [value]
        size += len(key) + 24
        size += sum(8 + len(one.encode()) if isinstance(one, str) else 4 for one in values)
    return size


def _tokenizer(folder: Path, document: Config) -> dict[str, Any]:
    settings = folder / "generation_config.json"
    ends = read_json_object(settings).get("eos_token_id") if settings.is_file() else None
    listed = tuple(ends) if isinstance(ends, list) else ()
    return tokenizer_keys(load_tokenizer(folder), int(document["vocab_size"]), listed)


def _parameters(stored: StoredModel) -> int:
    model = stored.skeleton.model
    head = f"{stored.skeleton.head_path}.weight" if stored.skeleton.tied else ""
    return sum(part.numel() for name, part in model.state_dict().items() if name != head)


def _entries(
    weight_map: Mapping[str, str], stored: StoredModel, architecture: Architecture
) -> Iterator[_Entry]:
    """In the order in which they are written: embedding and head, then layer by layer."""
    names = GgufNames(architecture, stored.skeleton.n_layers)
    layers = f"{stored.skeleton.layers_path}."

    def place(key: str) -> tuple[int, str]:
        inside = key.startswith(layers)
        return (int(key.removeprefix(layers).partition(".")[0]) if inside else -1, key)

    for key in sorted(weight_map, key=place):
        layout = stored.layouts.get(key.removesuffix(BLOCKS))
        name, kind = key, None
        if key.endswith(BLOCKS) and isinstance(layout, GgmlLayout | GgmlEmbeddingLayout):
            name, kind = f"{key.removesuffix(BLOCKS)}.weight", layout.block_type
        yield _Entry(names.of(name), weight_map[key], key, name, kind)


def _write(
    writer: gguf.GGUFWriter,
    folder: Path,
    entries: list[_Entry],
    architecture: Architecture,
    document: Config,
) -> None:
    """Sizes first, then one tensor after the other."""
    extra = extra_tensors(document)
    with ExitStack() as stack:
        shards = {
            file: stack.enter_context(safe_open(folder / file, "pt"))
            for file in {entry.file for entry in entries}
        }
        for entry in entries:
            part = shards[entry.file].get_slice(entry.key)
            shape, dtype = _stored_as(entry, part)
            writer.add_tensor_info(
                entry.name, shape, np.dtype(np.uint8) if entry.kind else np.dtype(np.float32),
                _bytes(entry, shape, dtype), raw_dtype=gguf.GGMLQuantizationType(_number(entry, dtype)),
            )  # fmt: skip
        for name, tensor in extra.items():
            writer.add_tensor_info(name, tensor.shape, np.dtype(np.float32), tensor.nbytes)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for entry in entries:
            tensor = shards[entry.file].get_tensor(entry.key)
            writer.write_tensor_data(_as_there(entry, tensor, architecture, document))
        for tensor in extra.values():
            writer.write_tensor_data(tensor.numpy())
        writer.close()


DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def _stored_as(entry: _Entry, part: Any) -> tuple[list[int], torch.dtype]:
    """Shape and dtype in the file: of vectors and tables of positions float32."""
    shape = list(part.get_shape())
    if entry.kind is not None:
        return shape, torch.uint8
    wide = len(shape) == 1 or entry.name == POSITIONS
    return shape, torch.float32 if wide else DTYPES[part.get_dtype()]


def _bytes(entry: _Entry, shape: list[int], dtype: torch.dtype) -> int:
    del entry
    count = 1
    for size in shape:
        count *= size
    return count * dtype.itemsize


def _number(entry: _Entry, dtype: torch.dtype) -> int:
    return RAW[dtype] if entry.kind is None else entry.kind.number


def _as_there(
    entry: _Entry, tensor: Tensor, architecture: Architecture, document: Config
) -> np.ndarray[Any, Any]:
    order = row_order(entry.stored, tensor.shape[0], architecture, document)
    if order is not None:
        tensor = tensor[order]
    shift = added(entry.stored, architecture)
    wide = tensor.dim() == 1 or entry.name == POSITIONS
    if entry.kind is None and (wide or shift):
        tensor = tensor.float() + shift
    tensor = tensor.contiguous()
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.view(torch.int16)
    found: np.ndarray[Any, Any] = tensor.numpy()
    return found
