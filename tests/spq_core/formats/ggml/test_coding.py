"""Blocks of ggml's types are what the `gguf` package and llama.cpp take them for, bit by bit."""

import gguf
import numpy as np
import pytest
import torch
from gguf.quants import dequantize

from spq_core.formats.ggml.coding import Blocks, pack, unpack, widened
from spq_core.formats.ggml.types import BLOCK_TYPES, block_type, fitting

ROWS, COLUMNS = 5, 768
KINDS = [pytest.param(kind, id=kind.name) for kind in BLOCK_TYPES]


def drawn(kind):
    """Rows whose blocks have any codes and scales, and finite numbers."""
    generator = torch.Generator().manual_seed(kind.number)
    raw = torch.randint(
        0, 256, (ROWS, kind.row_bytes(COLUMNS)), dtype=torch.uint8, generator=generator
    )
    blocks = unpack(kind, raw)
    d = (torch.randn(blocks.d.shape, generator=generator) * 0.01).half()
    offset = blocks.offset
    if offset is not None:
        offset = (torch.randn(offset.shape, generator=generator) * 0.01).half()
    return raw, blocks._replace(d=d, offset=offset)


@pytest.mark.parametrize("kind", KINDS)
def test_sizes_are_those_of_gguf(kind):
    columns, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind.name]]
    assert (kind.columns, kind.bytes) == (columns, size)
    assert kind.number == gguf.GGMLQuantizationType[kind.name].value


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_mean_what_the_gguf_package_says(kind):
    _, blocks = drawn(kind)
    packed = pack(kind, blocks)
    wanted = dequantize(packed.numpy(), gguf.GGMLQuantizationType(kind.number))
    assert np.array_equal(widened(kind, unpack(kind, packed)).numpy(), wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_any_bytes_survive_being_taken_apart(kind):
    raw, blocks = drawn(kind)
    assert torch.equal(pack(kind, unpack(kind, raw)), raw)
    again = unpack(kind, pack(kind, blocks))
    for name, part, wanted in zip(Blocks._fields, again, blocks, strict=True):
        assert (part is None and wanted is None) or torch.equal(part, wanted), name


def test_types_are_ordered_by_size_and_what_stands_in_is_not_smaller():
    sizes = [kind.bits for kind in BLOCK_TYPES]
    assert sizes == sorted(sizes)
    for kind in BLOCK_TYPES:
        other = fitting(kind, 576)
        assert other is not None
        assert other.fits(576)
        assert other.bits >= kind.bits


@pytest.mark.parametrize(("name", "columns"), [("Q4_K", 100), ("Q4_0", 48)])
def test_rows_that_are_no_whole_blocks_have_no_type(name, columns):
    assert fitting(block_type(name), columns) is None
