"""Codes of 8 bits with a scale for the tensor, each row or each block: W = codes · scales.

FP8 with blocks (DeepSeek-V3, arXiv 2412.19437, 3.3.2), FBGEMM, and what compressed-tensors stores unpacked.
"""

from collections.abc import Mapping
from typing import Any

from spq_core.errors import ArtifactError
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


def scaled_wholes(
    tensors: Mapping[str, WeightHeader], settings: Mapping[str, Any]
) -> dict[str, Whole]:
    """See `Form.wholes`.

    Raises:
        ArtifactError: codes have no scales, or are not symmetric.
    """
    block = _block(settings.get("weight_block_size"))
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
        whole = WeightHeader(header.file, WIDENED, header.shape)
        wholes[name] = Whole(whole, name, scale, "scaled", block)
    return wholes | {
        name: as_stored(name, header)
        for name, header in tensors.items()
        if name not in wholes and name not in scales and not name.endswith(OF_ACTIVATIONS)
    }


def _block(value: Any) -> tuple[int, int] | None:
    """Rows and columns of a block, if these are some."""
    fits = (
        isinstance(value, list)
        and len(value) == PAIR
        and all(type(one) is int and one > 0 for one in value)
    )
    return (value[0], value[1]) if fits else None
