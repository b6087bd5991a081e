"""How artifacts were written before there was a range coder, for tests that read them."""

import zlib

import numpy as np
import torch

from spq_core.formats.deflated.coding import RAW, Deflated


def deflate(codes, steps, order="columns"):
    """Codes and steps in the earlier form."""
    arranged = (
        codes.T if order == "columns" else codes[torch.argsort(steps.rows.int(), stable=True)]
    )
    writer = zlib.compressobj(9, zlib.DEFLATED, RAW, 8, zlib.Z_HUFFMAN_ONLY)
    stored = writer.compress(arranged.contiguous().numpy().tobytes()) + writer.flush()
    packed = [
        steps.rows,
        steps.columns,
        torch.from_numpy(np.frombuffer(bytearray(stored), np.uint8)),
    ]
    return Deflated(torch.cat(packed), steps.base, order)
