"""Lattice codes as a byte string of about their entropy.

    side information    deflated: steps; for the tables a spread for each row and column, and a centre for each column; a bit for
                        each column that follows no trellis
    lengths             of the parts, in 16-bit words, 4 bytes each
    parts               some columns each, by range coding (`kernels`)

A column whose values lie around a negative number is written with its sign turned; its centre tells.
"""

import zlib
from functools import cache
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from jaxtyping import Int8, UInt8
from torch import Tensor

from spq_core.errors import ArtifactError
from spq_core.formats.lattice.steps import Steps
from spq_core.formats.range_coded.spread import TRELLIS_SPACING, Spread, centres_of, spread_of
from spq_core.formats.range_coded.tables import tables
from spq_core.formats.range_coded.trellis import SCALAR, transitions

LEVEL = 9
PART_CODES = 1 << 18
"""Codes of a part, about: parts can be read by themselves."""
PART_COLUMNS = 4
"""A part has a multiple of this: columns that are read side by side."""
FITS = 3
LEAST_SQUARE = 2.0**-12
HEADER = 4

_Flags = np.ndarray[tuple[int], np.dtype[np.bool_]]
_Codes = np.ndarray[tuple[int, int], np.dtype[np.int8]]


class RangeCoded(NamedTuple):
    """The stored form of one matrix."""

    packed: UInt8[Tensor, " n_bytes"]
    base: float
    """Of its steps."""
    states: int
    """Of the trellis its codes follow; 1 for none."""

    def with_bytes(self, packed: UInt8[Tensor, " n_bytes"]) -> Self:
        """Other bytes, read alike."""
        return self._replace(packed=packed)

    def decoded(self, n_out: int, n_in: int) -> tuple[Int8[Tensor, "out n_in"], Steps]:
        """See `decode`."""
        return decode(self, n_out, n_in)


def encode(codes: Int8[Tensor, "out n_in"], steps: Steps, states: int = SCALAR) -> RangeCoded:
    """Store codes and their steps.

    Args:
        states: of the trellis that columns follow; those that do not are coded one by one.
    """
    by_column, nexts = codes.cpu().T.numpy().copy(), transitions(states)
    free = np.empty(len(by_column), dtype=np.bool_)
    kernels().find_free(by_column, nexts, free)
    spread = _spread_of(by_column, np.where(free, 1, TRELLIS_SPACING))
    by_column[spread.centres < 0] *= -1
    found = tables()
    sizes = [
        kernels().encode_columns(
            by_column[part], spread.rows, spread.columns[part], _centres(spread, part), free[part],
            nexts, found.reach, found.shares, found.starts,
        )
        for part in parts(*codes.shape)
    ]  # fmt: skip
    side = zlib.compress(
        b"".join([steps.rows.cpu().numpy().tobytes(), steps.columns.cpu().numpy().tobytes(),
                  *(part.tobytes() for part in spread), np.packbits(free).tobytes()]),
        LEVEL,
    )  # fmt: skip
    lengths = np.array([len(side), *map(len, sizes)], dtype="<u4")
    head = lengths.tobytes()
    whole = b"".join([head, side, *(words.astype("<u2").tobytes() for words in sizes)])
    return RangeCoded(
        torch.from_numpy(np.frombuffer(bytearray(whole), np.uint8)), steps.base, states
    )


def parts(n_out: int, n_in: int) -> list[slice]:
    """Columns of each part."""
    columns = max(1, PART_CODES // (n_out * PART_COLUMNS)) * PART_COLUMNS
    return [slice(at, min(at + columns, n_in)) for at in range(0, n_in, columns)]


def decode(coded: RangeCoded, n_out: int, n_in: int) -> tuple[Int8[Tensor, "out n_in"], Steps]:
    """Return what was given to `encode`.

    Raises:
        ArtifactError: the bytes are not those of n_out · n_in codes.
    """
    raw = coded.packed.cpu().contiguous().numpy()
    cut = parts(n_out, n_in)
    ends = HEADER * (len(cut) + 1)
    if len(raw) < ends:
        raise ArtifactError(f"{len(raw)} bytes cannot hold {n_out} · {n_in} codes")
    side_bytes, *lengths = np.frombuffer(raw[:ends].tobytes(), dtype="<u4").astype(int).tolist()
    if ends + side_bytes + 2 * sum(lengths) != len(raw):
        raise ArtifactError("the lengths of a matrix's parts are not those of its bytes")
    steps, spread, free = _side(raw[ends : ends + side_bytes].tobytes(), coded.base, n_out, n_in)
    found = tables()
    by_column = np.empty((n_in, n_out), dtype=np.int8)
    at = ends + side_bytes
    for part, length in zip(cut, lengths, strict=True):
        words = np.frombuffer(raw[at : at + 2 * length].tobytes(), dtype="<u2")
        at += 2 * length
        whole = kernels().decode_columns(
            words, spread.rows, spread.columns[part], _centres(spread, part), free[part],
            transitions(coded.states), found.reach, found.slots, by_column[part],
        )  # fmt: skip
        if not whole:
            raise ArtifactError("the codes of a matrix cannot be decoded")
    by_column[spread.centres < 0] *= -1
    return torch.from_numpy(by_column).T.contiguous(), steps


def steps_of(coded: RangeCoded, n_out: int, n_in: int) -> Steps:
    """The steps alone, without decoding any code."""
    raw = coded.packed.cpu().contiguous().numpy()
    begin = HEADER * (len(parts(n_out, n_in)) + 1)
    length = int(np.frombuffer(raw[:HEADER].tobytes(), dtype="<u4")[0])
    return _side(raw[begin : begin + length].tobytes(), coded.base, n_out, n_in)[0]


def _side(stored: bytes, base: float, n_out: int, n_in: int) -> tuple[Steps, Spread, _Flags]:
    sizes = (n_out, n_in, n_out, n_in, n_in, -(-n_in // 8))
    reader = zlib.decompressobj()
    try:
        whole = reader.decompress(stored, sum(sizes) + 1)
    except zlib.error as error:
        raise ArtifactError(f"the steps of a matrix cannot be decoded: {error}") from None
    if len(whole) != sum(sizes):
        raise ArtifactError(f"the steps of a matrix take {len(whole)} bytes, not {sum(sizes)}")
    ends = np.cumsum(sizes)
    flat = np.frombuffer(bytearray(whole), dtype=np.uint8)
    rows, columns, *spread = (flat[end - size : end] for size, end in zip(sizes, ends, strict=True))
    steps = Steps(base, torch.from_numpy(rows.copy()), torch.from_numpy(columns.copy()))
    own, theirs, centres, free = spread
    found = Spread(own, theirs.view(np.int8), centres.view(np.int8))
    return steps, found, np.unpackbits(free, count=n_in).astype(np.bool_)


def _centres(spread: Spread, part: slice) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.abs(spread.centres[part].astype(np.int64))


def _spread_of(codes: _Codes, spacings: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Spread:
    """The factors that fit the squares best, and what they are counted from.

    Args:
        codes: (columns, rows).
    """
    centres = centres_of(np.array([one.mean(dtype=np.float64) for one in codes]) / spacings)
    columns, rows = np.ones(codes.shape[0]), np.ones(codes.shape[1])
    for _ in range(FITS):
        kernels().fit_spread(codes, centres.astype(np.int64), spacings, LEAST_SQUARE, rows, columns)
    return spread_of(rows, columns, centres)


@cache
def kernels() -> Any:
    """The compiled loops; compiling takes seconds, so only where something is coded."""
    from spq_core.formats.range_coded import kernels as compiled  # noqa: PLC0415

    return compiled
