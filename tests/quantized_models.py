"""Stores a tiny model's weights as people store quantized ones; and says, element by element, what they stand for."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]


def _rewrite(folder: Path, settings: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    save_file(
        {name: one.contiguous() for name, one in tensors.items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))


def _is_linear(name: str, value: Tensor) -> bool:
    return value.ndim == 2 and "proj" in name


def store_fp8_blocks(
    folder: Path, block: int = 128, scale_dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """FP8 with a scale for each block, like DeepSeek-V3; returns what each matrix is."""
    stored: dict[str, Tensor] = {}
    wanted: dict[str, Tensor] = {}
    for name, value in load_file(folder / "model.safetensors").items():
        if not _is_linear(name, value):
            stored[name] = wanted[name] = value
            continue
        rows, columns = value.shape
        down, across = -(-rows // block), -(-columns // block)
        scales = torch.zeros(down, across)
        codes = torch.zeros(rows, columns, dtype=torch.float8_e4m3fn)
        whole = torch.zeros(rows, columns)
        for i in range(down):
            for j in range(across):
                at = slice(i * block, (i + 1) * block), slice(j * block, (j + 1) * block)
                part = value[at].float()
                scale = part.abs().max() / 448
                if scale_dtype == torch.float8_e8m0fnu:
                    scale = 2 ** torch.ceil(torch.log2(scale))
                scales[i, j] = scale.to(scale_dtype).float()
                codes[at] = (part / scales[i, j]).to(torch.float8_e4m3fn)
                whole[at] = codes[at].float() * scales[i, j]
        stored[name] = codes
        stored[f"{name}_scale_inv"] = scales.to(scale_dtype)
        stored[f"{name.removesuffix('weight')}activation_scale"] = torch.ones(())
        wanted[name] = whole.to(torch.bfloat16)
    settings = {"quant_method": "fp8", "weight_block_size": [block, block], "fmt": "e4m3"}
    _rewrite(folder, settings, stored)
    return wanted


def store_rows(folder: Path, kind: str) -> dict[str, Tensor]:
    """A scale for each row, like llm-compressor: `float` (FP8) or `int` (8 bits); returns what each matrix is."""
    stored: dict[str, Tensor] = {}
    wanted: dict[str, Tensor] = {}
    for name, value in load_file(folder / "model.safetensors").items():
        if not _is_linear(name, value):
            stored[name] = wanted[name] = value
            continue
        largest = 448 if kind == "float" else 127
        scales = value.float().abs().amax(1, keepdim=True) / largest
        dtype = torch.float8_e4m3fn if kind == "float" else torch.int8
        codes = (value.float() / scales).round(decimals=3 if kind == "float" else 0).to(dtype)
        stored[name], stored[f"{name}_scale"] = codes, scales
        wanted[name] = torch.from_numpy(codes.float().numpy() * scales.numpy()).to(torch.bfloat16)
    settings = {"quant_method": "compressed-tensors", "format": f"{kind}-quantized"}
    _rewrite(folder, settings, stored)
    return wanted


def store_mxfp4(folder: Path) -> dict[str, Tensor]:
    """Experts in blocks of 32 codes of 4 bits, like gpt-oss; returns what each tensor is."""
    stored: dict[str, Tensor] = {}
    wanted: dict[str, Tensor] = {}
    generator = np.random.default_rng(1)
    for name, value in load_file(folder / "model.safetensors").items():
        if not name.endswith(("gate_up_proj", "down_proj")):
            stored[name] = wanted[name] = value
            continue
        experts, inputs, outputs = value.shape
        codes = generator.integers(0, 16, (experts, outputs, inputs))
        exponents = generator.integers(117, 122, (experts, outputs, inputs // 32))
        whole = np.zeros((experts, inputs, outputs), np.float32)
        for e, o, i in np.ndindex(codes.shape):
            code = codes[e, o, i]
            sign = -1.0 if code >= 8 else 1.0
            whole[e, i, o] = sign * E2M1[code % 8] * 2.0 ** (int(exponents[e, o, i // 32]) - 127)
        pairs = codes.reshape(experts, outputs, inputs // 32, 16, 2)
        stored[f"{name}_blocks"] = torch.from_numpy(
            (pairs[..., 0] + 16 * pairs[..., 1]).astype(np.uint8)
        )
        stored[f"{name}_scales"] = torch.from_numpy(exponents.astype(np.uint8))
        wanted[name] = torch.from_numpy(whole).to(torch.bfloat16)
    _rewrite(folder, {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}, stored)
    return wanted
