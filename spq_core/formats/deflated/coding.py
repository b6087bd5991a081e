"""Lattice codes as DEFLATE without matches stores them (its Huffman stage, from the standard library).

The string is the steps, then the codes, by column, or by row with the rows ordered by their step. Artifacts had this form before
there was a range coder; it takes some 0.1 bit a code more.
"""

import zlib
from typing import Literal, NamedTuple, Self

import numpy as np
import torch
from jaxtyping import Int8, UInt8
from torch import Tensor

from spq_core.errors import ArtifactError
from spq_core.formats.lattice.steps import Steps

RAW = -15
"""DEFLATE's window without header and checksum: the artifact's manifest has every file's digest."""
CODES_PER_BYTE = 8
"""A Huffman code has at least one bit, so a byte holds at most this many."""

Order = Literal["columns", "rows"]


class Deflated(NamedTuple):
    """The stored form of one matrix."""

    packed: UInt8[Tensor, " n_bytes"]
    base: float
    """Of its steps."""
    order: Order

    def with_bytes(self, packed: UInt8[Tensor, " n_bytes"]) -> Self:
        """Other bytes, read alike."""
        return self._replace(packed=packed)

    def decoded(self, n_out: int, n_in: int) -> tuple[Int8[Tensor, "out n_in"], Steps]:
        """See `decode`."""
        return decode(self, n_out, n_in)


def decode(coded: Deflated, n_out: int, n_in: int) -> tuple[Int8[Tensor, "out n_in"], Steps]:
    """Codes and steps, on the CPU.

    Raises:
        ArtifactError: the string does not hold n_out · n_in codes.
    """
    packed = coded.packed.cpu()
    steps = Steps(
        coded.base, packed[:n_out].contiguous(), packed[n_out : n_out + n_in].contiguous()
    )
    stored = packed[n_out + n_in :].contiguous()
    count = n_out * n_in
    if count > CODES_PER_BYTE * len(stored):
        raise ArtifactError(f"{len(stored)} bytes cannot hold {count} codes")
    reader = zlib.decompressobj(RAW)
    try:
        raw = reader.decompress(stored.numpy().tobytes(), count)
    except zlib.error as error:
        raise ArtifactError(f"the codes cannot be decoded: {error}") from None
    if len(raw) != count:
        raise ArtifactError(f"the codes end after {len(raw)} of {count}")
    flat = torch.from_numpy(np.frombuffer(bytearray(raw), dtype=np.int8))
    if coded.order == "columns":
        return flat.view(n_in, n_out).T.contiguous(), steps
    codes = torch.empty(n_out, n_in, dtype=torch.int8)
    codes[torch.argsort(steps.rows.int(), stable=True)] = flat.view(n_out, n_in)
    return codes, steps
