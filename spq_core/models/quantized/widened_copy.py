"""Writes weights that are quantized already as ordinary ones, a few at a time."""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from spq_core.errors import ArtifactError, DiskSpaceError
from spq_core.models.quantized.forms import KEY, form_of, wholes_of
from spq_core.models.quantized.values import RULES
from spq_core.models.quantized.whole import Whole
from spq_core.models.weight_files import (
    INDEX_FILE,
    SINGLE_FILE,
    WeightHeader,
    read_header,
    weight_files,
)

FILE_BYTES = 1 << 30
"""Tensors are held in memory until a file has so many bytes, or a single one has more."""


def stored_headers(folder: Path) -> dict[str, WeightHeader]:
    """What the headers of a folder's weight files say.

    Raises:
        ArtifactError: one is malformed.
    """
    found: dict[str, WeightHeader] = {}
    for file in weight_files(folder):
        found |= read_header(folder / file)
    return found


def write_widened(folder: Path, config: Mapping[str, Any], copy: Path) -> str:
    """Write the weights of a quantized model in 16 bits.

    Args:
        folder: with its weight files.
        config: its config.json.
        copy: an existing folder without weights.

    Returns:
        a note for the report.

    Raises:
        UnsafeModelError: the form is none that is widened.
        ArtifactError: parts of a tensor are missing, or do not go together.
        DiskSpaceError: the copy would not fit.
    """
    tensors = stored_headers(folder)
    wholes = wholes_of(config, tensors)
    needed = sum(whole.header.n_bytes for whole in wholes.values())
    free = shutil.disk_usage(copy).free
    if needed > free:
        raise DiskSpaceError(str(copy.parent), needed, free)
    parts = list(_files(wholes))
    weight_map: dict[str, str] = {}
    for number, names in enumerate(parts, start=1):
        file = (
            SINGLE_FILE
            if len(parts) == 1
            else f"model-{number:05d}-of-{len(parts):05d}.safetensors"
        )
        _write(folder, {name: wholes[name] for name in names}, tensors, copy / file)
        weight_map |= dict.fromkeys(names, file)
    if len(parts) > 1:
        index = {"metadata": {"total_size": needed}, "weight_map": weight_map}
        (copy / INDEX_FILE).write_text(json.dumps(index), encoding="utf-8")
    widened = sum(bool(whole.rule) for whole in wholes.values())
    if not widened:
        return f"config.json: {KEY} ({form_of(config).name}) is left out: no tensor is quantized"
    stored = sum(header.n_bytes for header in tensors.values())
    return (
        f"config.json: {KEY} ({form_of(config).name}): {widened} tensors were quantized already and are widened to "
        f"bfloat16, {stored:,} bytes to {needed:,}; figures and ratios are against those"
    )


def _files(wholes: Mapping[str, Whole]) -> Iterator[list[str]]:
    """Names for each file, in the order that they are stored."""
    names: list[str] = []
    size = 0
    for name in sorted(wholes, key=lambda one: (wholes[one].header.file, one)):
        if names and size + wholes[name].header.n_bytes > FILE_BYTES:
            yield names
            names, size = [], 0
        names.append(name)
        size += wholes[name].header.n_bytes
    yield names


def _write(
    folder: Path, wholes: Mapping[str, Whole], stored: Mapping[str, WeightHeader], target: Path
) -> None:
    with ExitStack() as opened:
        handles: dict[str, Any] = {}

        def read(name: str) -> Tensor:
            file = stored[name].file
            if file not in handles:
                handles[file] = opened.enter_context(safe_open(folder / file, framework="pt"))
            tensor: Tensor = handles[file].get_tensor(name)
            return tensor

        try:
            values = {name: _value(name, whole, read) for name, whole in wholes.items()}
        except SafetensorError as error:
            raise ArtifactError(f"{folder.name}: {error}") from None
        save_file(values, target, metadata={"format": "pt"})


def _value(name: str, whole: Whole, read: Callable[[str], Tensor]) -> Tensor:
    codes = read(whole.codes)
    if not whole.rule:
        return codes
    try:
        return RULES[whole.rule](codes, read(whole.scales), whole.block)
    except ArtifactError as error:
        raise ArtifactError(f"{whole.header.file}: {name!r}: {error}") from None
