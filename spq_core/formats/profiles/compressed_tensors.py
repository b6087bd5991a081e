"""The `portable` profile: compressed-tensors' `pack-quantized` form, for runtimes without our package.

Each matrix of a decoder layer becomes `weight_packed` (a row's codes as a string of bits, first code
lowest, cut into int32 words), `weight_scale` and `weight_shape` (compressed-tensors,
`compressors/pack_quantized`; vLLM runs it as weight-only integers). Grids are symmetric: stock transformers
5.23 finds packed zero points of another shape than it expects, and makes some up. Architecture, embedding
and head stay as they are; an MLP may be narrower, in all layers alike.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Int32, UInt8
from torch import Tensor, nn
from torch.nn import functional

from spq_core.formats.packed.linear import PackedLinear
from spq_core.formats.profiles.compact import source_document
from spq_core.models.skeleton import Skeleton

WORD_BITS = 32
WORD_BYTES = 4
WIDTH_KEYS = ("intermediate_size", "ffn_dim", "n_inner")
"""How configurations call the width of an MLP."""


class PortableGrid(NamedTuple):
    """How the matrices of the layers are quantized."""

    bits: int
    group_size: int | None
    """None for one scale a row."""


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


def store_portable(block: nn.Module, dtype: torch.dtype) -> None:
    """Replace quantized layers by their stored form."""
    for name, module in list(block.named_modules()):
        if isinstance(module, PackedLinear):
            block.set_submodule(name, PortableLinear(module, dtype))


def portable_config(
    skeleton: Skeleton, grid: PortableGrid | None, dtype: torch.dtype, width: int | None
) -> dict[str, Any]:
    """The source's config.json with what compressed-tensors needs to know.

    Args:
        grid: None where nothing is quantized.
        width: of every MLP, if it changed.
    """
    config = source_document(skeleton.config)
    if width is not None:
        config |= {key: width for key in WIDTH_KEYS if config.get(key) is not None}
    config |= {
        "architectures": [type(skeleton.model).__name__],
        "dtype": str(dtype).removeprefix("torch."),
    }
    if grid is None:
        return config
    return config | {
        "quantization_config": {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "quantization_status": "compressed",
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": _weights(grid)}},
            "ignore": [skeleton.head_path],
        }
    }


def _weights(grid: PortableGrid) -> dict[str, Any]:
    return {
        "num_bits": grid.bits,
        "type": "int",
        "symmetric": True,
        "strategy": "channel" if grid.group_size is None else "group",
        "group_size": grid.group_size,
        "dynamic": False,
    }
