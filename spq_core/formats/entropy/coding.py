"""Lattice codes as they are stored: a byte string whose length is about their entropy.

The string is the steps, then Huffman-coded codes (DEFLATE without matches, from the standard
library). DEFLATE starts a new table every few thousand codes, so it pays to write codes of equal
spread next to each other: by column, or by row with the rows ordered by their step. The shorter of
the two is kept.
"""

import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from jaxtyping import Int8
from torch import Tensor

from spq_core.errors import ArtifactError
from spq_core.formats.entropy.steps import CodedWeight, Order, Steps

RAW = -15
"""DEFLATE's window without header and checksum: the artifact's manifest has every file's digest."""
MEMORY_LEVELS = (8, 9)
"""Two lengths of DEFLATE's blocks: so much memory gives blocks of 2^(level + 6) codes."""
CODES_PER_BYTE = 8
"""A Huffman code has at least one bit, so a byte holds at most this many."""
SAMPLED_BLOCKS = 12
"""Long blocks of which the length of each way of storing is predicted."""
TABLE_BITS_PER_CODE = 4.0
"""What a block's table takes for each code that occurs in it, about."""
PIECE_BLOCKS = 32
"""Blocks that one thread writes before another goes on; a seam takes five bytes."""


def encode(codes: Int8[Tensor, "out n_in"], steps: Steps) -> CodedWeight:
    """Store codes and their steps, in the way that is predicted to be shortest; written in threads."""
    arranged: dict[Order, _Bytes] = {
        "columns": _bytes_of(codes.T),
        "rows": _bytes_of(codes[_by_step(steps).to(codes.device)]),
    }
    lengths = {
        (order, level): _predicted_bits(flat, 1 << (level + 6))
        for order, flat in arranged.items()
        for level in MEMORY_LEVELS
    }
    order, level = min(lengths, key=lambda way: lengths[way])
    packed = _deflate(arranged[order], level)
    stored = torch.from_numpy(np.frombuffer(packed, dtype=np.uint8))
    return CodedWeight(
        torch.cat([steps.rows.cpu(), steps.columns.cpu(), stored]), steps.base, order
    )


_Bytes = np.ndarray[Any, np.dtype[np.uint8]]


def _bytes_of(codes: Tensor) -> _Bytes:
    return codes.cpu().contiguous().view(torch.uint8).flatten().numpy()


def _predicted_bits(flat: _Bytes, block: int) -> float:
    """Bits per code: the entropy of each block, and its table; of blocks spread over all."""
    longest = 1 << (max(MEMORY_LEVELS) + 6)
    starts = np.arange(0, len(flat), longest)
    picked = starts[np.linspace(0, len(starts) - 1, min(len(starts), SAMPLED_BLOCKS)).astype(int)]
    bits, seen = 0.0, 0
    for start in picked:
        for at in range(start, min(start + longest, len(flat)), block):
            counts = np.bincount(flat[at : min(at + block, len(flat))])
            counts = counts[counts > 0]
            total = int(counts.sum())
            bits += float((counts * np.maximum(1.0, np.log2(total / counts))).sum())
            bits += TABLE_BITS_PER_CODE * len(counts)
            seen += total
    return bits / seen


def _by_step(steps: Steps) -> Tensor:
    return torch.argsort(steps.rows.int(), stable=True)


def decode(coded: CodedWeight, n_out: int, n_in: int) -> tuple[Int8[Tensor, "out n_in"], Steps]:
    """Return what was given to `encode`.

    Raises:
        ArtifactError: the string does not hold n_out · n_in codes.
    """
    rows = coded.packed[:n_out].contiguous()
    columns = coded.packed[n_out : n_out + n_in].contiguous()
    stored = coded.packed[n_out + n_in :].contiguous()
    steps = Steps(coded.base, rows, columns)
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
    codes[_by_step(steps)] = flat.view(n_out, n_in)
    return codes, steps


def _deflate(flat: _Bytes, memory_level: int) -> bytearray:
    """One stream of pieces that end at a byte; zlib lets go of the interpreter's lock."""
    size = PIECE_BLOCKS * ((1 << (memory_level + 6)) - 1)  # zlib ends a block one code early
    starts = range(0, len(flat), size)

    def piece(start: int) -> bytes:
        writer = zlib.compressobj(9, zlib.DEFLATED, RAW, memory_level, zlib.Z_HUFFMAN_ONLY)
        last = start + size >= len(flat)
        written = writer.compress(flat[start : start + size].data)
        return written + writer.flush(zlib.Z_FINISH if last else zlib.Z_SYNC_FLUSH)

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        return bytearray().join(pool.map(piece, starts))
