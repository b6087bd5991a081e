"""The `portable` profile: compressed-tensors' `pack-quantized` form, for runtimes without our package.

Each matrix of a decoder layer becomes `weight_packed` (a row's codes as a string of bits, first code
lowest, cut into int32 words), `weight_scale` and `weight_shape` (compressed-tensors,
`compressors/pack_quantized`; vLLM runs it as weight-only integers). Grids are symmetric: stock transformers
5.23 finds packed zero points of another shape than it expects, and makes some up. Architecture, embedding
and head stay as they are; an MLP may be narrower, in all layers alike.
"""

from typing import Any

import torch
from jaxtyping import Int32, UInt8
from torch import Tensor, nn
from torch.nn import functional

from spq_core.formats.layer import Layout
from spq_core.formats.layouts import changed_layouts
from spq_core.formats.packed.linear import PackedLayout, PackedLinear
from spq_core.formats.profiles.stored_model import StoredModel, stock_document
from spq_core.formats.slicing import float_linears

WORD_BITS = 32
WORD_BYTES = 4


class PortableLinear(nn.Module):
    """A linear layer's tensors under the names of compressed-tensors. For storing only."""

    def __init__(self, linear: PackedLinear, dtype: torch.dtype) -> None:
        """Take over a layer with a symmetric grid, whose scales are representable in `dtype`."""
        super().__init__()
        words = -(-linear.n_in * linear.bits // WORD_BITS)
        self.register_buffer("weight_packed", _words(linear.packed.data)[:, :words].contiguous())
        self.register_buffer("weight_scale", linear.scale.data.to(dtype))
        shape = torch.tensor([linear.out_features, linear.n_in], dtype=torch.int64)
        self.register_buffer("weight_shape", shape)
        self.bias = linear.bias


def _words(rows: UInt8[Tensor, "n n_bytes"]) -> Int32[Tensor, "n words"]:
    """A row's bytes as little-endian words, the last one filled up with zeros."""
    return functional.pad(rows, (0, -rows.shape[1] % WORD_BYTES)).contiguous().view(torch.int32)


def store_block(
    path: str, block: nn.Module, original: nn.Module, dtype: torch.dtype
) -> dict[str, Layout]:
    """Replace quantized layers by their stored form."""
    layouts = changed_layouts(path, block, original)
    for name, module in list(block.named_modules()):
        if isinstance(module, PackedLinear):
            block.set_submodule(name, PortableLinear(module, dtype))
    return layouts


def config(stored: StoredModel) -> dict[str, Any]:
    """The source's config.json with what compressed-tensors needs to know."""
    document = stock_document(stored)
    by_name = {name: one for name, one in stored.layouts.items() if isinstance(one, PackedLayout)}
    packed = list(by_name.values())
    if not packed:
        return document
    # Readers pack every linear layer that is not named: towers, routers, small gates would be missing.
    others = {name for name, _ in float_linears(stored.skeleton.model)} - by_name.keys()
    return document | {
        "quantization_config": {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "quantization_status": "compressed",
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": _weights(packed)}},
            "ignore": sorted({*others, stored.skeleton.head_path}),
        }
    }


def _weights(packed: list[PackedLayout]) -> dict[str, Any]:
    by_row = all(layout.group_size == layout.n_in for layout in packed)
    return {
        "num_bits": packed[0].bits,
        "type": "int",
        "symmetric": True,
        "strategy": "channel" if by_row else "group",
        "group_size": None if by_row else packed[0].group_size,
        "dynamic": False,
    }
