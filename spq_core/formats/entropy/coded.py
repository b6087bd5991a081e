"""Lattice codes as they are stored: a byte string whose length is about their entropy.

The string is the steps, then Huffman-coded codes (DEFLATE without matches, from the standard
library). DEFLATE starts a new table every few thousand codes, so it pays to write codes of equal
spread next to each other: by column, or by row with the rows ordered by their step. The shorter of
the two is kept.

The modules here stand in a model only between its construction and the end of loading: `expand`
turns them into 8-bit layers, which compute.
"""

import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from jaxtyping import Int8
from torch import Tensor, nn

from spq_core.errors import ArtifactError
from spq_core.formats.int8.linear import Int8Embedding, Int8Linear
from spq_core.formats.int8.matmul import pad_columns
from spq_core.formats.steps import CodedWeight, Order, Steps

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


class Coded(nn.Module):
    """A stored matrix: one parameter, `packed`."""

    def __init__(self, coded: CodedWeight, n_out: int, n_in: int) -> None:
        super().__init__()
        self.packed = nn.Parameter(coded.packed, requires_grad=False)
        self.base, self.order = coded.base, coded.order
        self.n_out, self.n_in = n_out, n_in

    def decoded(self) -> tuple[Int8[Tensor, "out n_in"], Steps]:
        """Codes and steps, on the CPU."""
        stored = CodedWeight(self.packed.data.cpu(), self.base, self.order)
        return decode(stored, self.n_out, self.n_in)


class CodedLinear(Coded):
    """A linear layer before `expand`."""

    def __init__(self, coded: CodedWeight, n_out: int, n_in: int, bias: Tensor | None) -> None:
        super().__init__(coded, n_out, n_in)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    def expand(self) -> Int8Linear:
        """Make the layer that computes."""
        codes, steps = self.decoded()
        bias = None if self.bias is None else self.bias.data
        return lattice_linear(codes, steps, bias).to(self.packed.device)


class CodedEmbedding(Coded):
    """An embedding before `expand`."""

    def __init__(
        self, coded: CodedWeight, n: int, dim: int, dtype: torch.dtype, output_scale: float = 1.0
    ) -> None:
        super().__init__(coded, n, dim)
        self.dtype, self.output_scale = dtype, output_scale

    def expand(self) -> Int8Embedding:
        """Make the embedding that computes."""
        codes, steps = self.decoded()
        embedding = lattice_embedding(codes, steps, self.dtype, output_scale=self.output_scale)
        return embedding.to(self.packed.device)


def lattice_linear(
    codes: Int8[Tensor, "out n_in"],
    steps: Steps,
    bias: Tensor | None,
    coded: CodedWeight | None = None,
) -> Int8Linear:
    """Make an 8-bit layer of lattice codes; `coded` is their stored form, if they are to be stored."""
    return Int8Linear(
        pad_columns(codes), steps.row_steps, bias,
        in_features=codes.shape[1], input_scale=steps.column_steps, coded=coded,
    )  # fmt: skip


def lattice_embedding(
    codes: Int8[Tensor, "n dim"],
    steps: Steps,
    dtype: torch.dtype,
    *,
    output_scale: float,
    coded: CodedWeight | None = None,
) -> Int8Embedding:
    """Make an 8-bit embedding of lattice codes."""
    return Int8Embedding(
        codes, steps.row_steps, dtype,
        output_scale=output_scale, input_scale=steps.column_steps, coded=coded,
    )  # fmt: skip


def tied_head(embedding: Int8Embedding) -> Int8Linear:
    """Make the output head that shares an embedding's codes and scales."""
    head = Int8Linear(
        embedding.codes.data, embedding.scale.data,
        in_features=embedding.codes.shape[1], coded=embedding.coded,
    )  # fmt: skip
    head.codes, head.scale = embedding.codes, embedding.scale
    head.input_scale = embedding.input_scale
    return head


def to_stored(module: nn.Module) -> Coded | None:
    """The coded twin of an 8-bit layer on a lattice; None for anything else."""
    if isinstance(module, Int8Linear) and module.coded is not None:
        bias = None if module.bias is None else module.bias.data
        return CodedLinear(module.coded, module.out_features, module.in_features, bias)
    if isinstance(module, Int8Embedding) and module.coded is not None:
        n, dim = module.codes.shape
        dtype = module.dtype_anchor.dtype
        return CodedEmbedding(module.coded, n, dim, dtype, module.output_scale)
    return None
