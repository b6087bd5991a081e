"""Codes of 8 bits with a scale for the tensor, each row or each block: W = codes · scales.

FP8 with blocks (DeepSeek-V3, arXiv 2412.19437, 3.3.2), FBGEMM, and what compressed-tensors stores unpacked.
"""

from collections.abc import Mapping
from math import prod
from typing import Any

from spq_core.errors import ArtifactError, UnsafeModelError
from spq_core.models.quantized.whole import WIDENED, Whole, as_stored
from spq_core.models.weight_files import WeightHeader

CODES = frozenset({"F8_E4M3", "F8_E5M2", "I8"})
SCALES = ("_scale_inv", "_scale")
"""What the name of a tensor's scales ends with. That of DeepSeek is called inverse, and is multiplied with all the same."""
OF_ACTIVATIONS = (
    ".activation_scale", ".input_scale", ".input_scale_ub", ".k_scale", ".v_scale", ".q_scale", ".output_scale",
    ".input_zero_point", ".k_zero_point", ".v_zero_point",
)  # fmt: skip
"""What weights do without."""
ZERO_POINT = "_zero_point"
PAIR = 2
LARGEST_BLOCK = 1 << 16


def scaled_wholes(
    tensors: Mapping[str, WeightHeader], settings: Mapping[str, Any]
) -> dict[str, Whole]:
    """See `Form.wholes`.

    Raises:
        ArtifactError: codes have no scales, or those of another shape, or are not symmetric.
        UnsafeModelError: the size of blocks is none.
    """
    block = stated_block(settings)
    wholes: dict[str, Whole] = {}
    scales = set()
    for name, header in tensors.items():
        if header.dtype not in CODES:
            continue
        scale = next((name + end for end in SCALES if name + end in tensors), None)
        if scale is None:
            raise ArtifactError(
                f"{header.file}: {name!r} is stored as {header.dtype}, and there is no {name + SCALES[0]!r} or "
                f"{name + SCALES[1]!r} to multiply it with; fetch the model again"
            )
        if name + ZERO_POINT in tensors:
            raise ArtifactError(
                f"{header.file}: {name!r} has zero points, which are not widened; name the model it was made from"
            )
        scales.add(scale)
        if not _fit(tensors[scale].shape, header.shape, block):
            raise ArtifactError(
                f"{header.file}: {name!r} has shape {list(header.shape)}, and its scales {scale!r} {list(tensors[scale].shape)}: "
                f"they are neither one, nor one a row, nor one a block of {block or 'a size that config.json states'}"
            )
        whole = WeightHeader(header.file, WIDENED, header.shape)
        wholes[name] = Whole(whole, name, scale, "scaled", block)
    return wholes | {
        name: as_stored(name, header)
        for name, header in tensors.items()
        if name not in wholes and name not in scales and not name.endswith(OF_ACTIVATIONS)
    }


def stated_block(settings: Mapping[str, Any]) -> tuple[int, int] | None:
    """Rows and columns that share a scale, as a config.json states them; the last block may be shorter, so they cannot be guessed.

    Raises:
        UnsafeModelError: what it states is no size, or there are several.
    """
    groups = settings.get("config_groups")
    weights = [
        group.get("weights")
        for group in (groups.values() if isinstance(groups, dict) else ())
        if isinstance(group, dict)
    ]
    stated = [one.get("block_structure") for one in weights if isinstance(one, dict)]
    found = {
        _block(value) for value in (settings.get("weight_block_size"), *stated) if value is not None
    }
    if len(found) > 1:
        raise UnsafeModelError(
            "unsafe_config",
            f"config.json: quantization_config states blocks of several sizes ({found}), which is not widened",
        )
    return next(iter(found), None)


def _block(value: Any) -> tuple[int, int]:
    """Rows and columns, of `[128, 128]` or `"128x128"`."""
    parts = value.split("x") if isinstance(value, str) else value
    sizes = (
        [int(one) if str(one).isdecimal() else 0 for one in parts]
        if isinstance(parts, list)
        else []
    )
    if len(sizes) != PAIR or not all(0 < one <= LARGEST_BLOCK for one in sizes):
        raise UnsafeModelError(
            "unsafe_config",
            f"config.json: quantization_config states blocks of {str(value)[:40]!r}, expected two sizes such as [128, 128]",
        )
    return sizes[0], sizes[1]


def _fit(scales: tuple[int, ...], codes: tuple[int, ...], block: tuple[int, int] | None) -> bool:
    """Whether these scales are one, one a row, or one a block of codes."""
    if prod(scales) == 1:
        return True
    if len(codes) < PAIR:
        return False
    *front, rows, columns = codes
    by_row = [(*front, rows), (*front, rows, 1)]
    by_block = [] if block is None else [(*front, -(-rows // block[0]), -(-columns // block[1]))]
    return tuple(scales) in (*by_row, *by_block)
