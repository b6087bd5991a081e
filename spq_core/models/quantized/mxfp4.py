"""MXFP4 as gpt-oss stores its experts: blocks of 32 codes of 4 bits (E2M1), with a power of two each.

OCP Microscaling Formats (MX) Specification 1.0, 5.3 and 6.
"""

from collections.abc import Mapping
from typing import Any

from spq_core.errors import ArtifactError
from spq_core.models.quantized.whole import WIDENED, Whole, as_stored
from spq_core.models.weight_files import WeightHeader

BLOCKS, SCALES = "_blocks", "_scales"
BYTES_OF_A_BLOCK = 16
CODES_OF_A_BLOCK = 32
AXES = 4


def mxfp4_wholes(
    tensors: Mapping[str, WeightHeader], _settings: Mapping[str, Any]
) -> dict[str, Whole]:
    """See `Form.wholes`.

    Blocks have the shape [experts, outputs, blocks of a row, 16]; experts compute from [experts, inputs, outputs].

    Raises:
        ArtifactError: blocks have no scales, or shapes that do not go together.
    """
    wholes: dict[str, Whole] = {}
    for name, header in tensors.items():
        if header.dtype != "U8" or not name.endswith(BLOCKS):
            continue
        whole = name.removesuffix(BLOCKS)
        scales = tensors.get(whole + SCALES)
        shape = header.shape
        fits = len(shape) == AXES and shape[-1] == BYTES_OF_A_BLOCK
        if scales is None or scales.shape != shape[:-1] or not fits:
            raise ArtifactError(
                f"{header.file}: {name!r} with shape {list(shape)} has no {whole + SCALES!r} with a scale for each of its "
                "blocks of 16 bytes; fetch the model again"
            )
        experts, outputs, blocks, _ = shape
        inputs = blocks * CODES_OF_A_BLOCK
        wholes[whole] = Whole(
            WeightHeader(header.file, WIDENED, (experts, inputs, outputs)),
            name,
            whole + SCALES,
            "mxfp4",
        )
    parts = {one for whole in wholes.values() for one in (whole.codes, whole.scales)}
    return wholes | {
        name: as_stored(name, header) for name, header in tensors.items() if name not in parts
    }
