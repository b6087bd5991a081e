"""In which dtype widened codes are multiplied."""

import torch
from torch import Tensor


def _has_bfloat16_products() -> bool:
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    told = (getattr(torch.cpu, name, None) for name in names)
    return any(supported() for supported in told if supported is not None)


NATIVE_BFLOAT16 = _has_bfloat16_products()
"""Whether this processor multiplies bfloat16; False where torch does not tell. Asked once: compiled code cannot ask."""


def product_dtype(x: Tensor) -> torch.dtype:
    """That of the activations, or float32 where that is as exact at least, and faster or needed.

    Sums of activation times code leave float16's range where the scaled result does not. Processors without instructions for bfloat16 take
    up to nine times as long with it as with float32 (AVX2: 10 against 88 GFLOPS of one core).
    """
    if x.dtype == torch.float16:
        return torch.float32
    if x.dtype == torch.bfloat16 and x.device.type == "cpu" and not NATIVE_BFLOAT16:
        return torch.float32
    return x.dtype
