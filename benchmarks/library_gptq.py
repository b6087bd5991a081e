"""GPTQ by llm-compressor, in an environment of its own: its result as a plain checkpoint.

    python3.11 -m venv ENV && ENV/bin/pip install torch==2.13.0 llmcompressor==0.14.0.1
    ENV/bin/python benchmarks/library_gptq.py MODEL OUT --bits 4 --group 32 --text TEXT

The library quantizes linear layers; the embedding (tied to the head) is rounded to nearest here,
as its users do. Weights are written dequantized, so that every row of a comparison is scored by
the same code; `bytes.json` has what the packed form takes: codes, float16 scales, zero points, and
everything that is not quantized.
"""

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from transformers import AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    options = read_options()
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    weights = QuantizationArgs(
        num_bits=options.bits,
        symmetric=options.symmetric,
        strategy="group",
        group_size=options.group,
    )
    started = time.monotonic()
    oneshot(
        model=model,
        dataset=calibration(tokenizer, options),
        recipe=GPTQModifier(
            config_groups={"all": QuantizationScheme(targets=["Linear"], weights=weights)},
            ignore=["lm_head"],
        ),
        max_seq_length=options.length,
        num_calibration_samples=options.samples,
    )
    seconds = time.monotonic() - started
    source = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    stored = take_over(source, model, options)
    source.save_pretrained(options.out)
    tokenizer.save_pretrained(options.out)
    document = {"bytes": round(stored), "seconds": seconds, "options": vars(options)}
    (options.out / "bytes.json").write_text(json.dumps(document, default=str), encoding="utf-8")


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("out", type=Path)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--group", type=int, default=32)
    parser.add_argument("--symmetric", action="store_true")
    parser.add_argument("--embedding-bits", type=int, default=4)
    parser.add_argument("--embedding-group", type=int, default=32)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--length", type=int, default=512)
    return parser.parse_args()


@torch.no_grad()
def take_over(source: Any, quantized: Any, options: argparse.Namespace) -> float:
    """Copy quantized weights into the source model, and count what they take when packed."""
    stored = 0.0
    for name, parameter in source.named_parameters():
        if name.endswith("_proj.weight"):
            parameter.copy_(quantized.get_parameter(name))
            zeros = 0 if options.symmetric else options.bits
            stored += grid_bytes(parameter, options.bits, options.group, zeros)
        elif name == "model.embed_tokens.weight":
            bits, group = options.embedding_bits, options.embedding_group
            parameter.copy_(rounded(parameter, bits, group))
            stored += grid_bytes(parameter, bits, group, bits)
        else:
            stored += 2 * parameter.numel()
    return stored


def calibration(tokenizer: Any, options: argparse.Namespace) -> Dataset:
    """The windows that our recipes use: evenly spaced over the text."""
    ids = tokenizer(options.text.read_text(encoding="utf-8"))["input_ids"]
    count = len(ids) // options.length
    windows = torch.tensor(ids[: count * options.length]).view(count, options.length)
    picked = windows[torch.linspace(0, count - 1, options.samples).long()]
    return Dataset.from_dict(
        {"input_ids": picked.tolist(), "attention_mask": torch.ones_like(picked).tolist()}
    )


def grid_bytes(weight: torch.Tensor, bits: int, group: int, zero_bits: int) -> float:
    """Codes, and a float16 scale and a zero point per group."""
    groups = weight.shape[0] * math.ceil(weight.shape[1] / group)
    return (bits * weight.numel() + groups * (16 + zero_bits)) / 8


def rounded(weight: torch.Tensor, bits: int, group: int) -> torch.Tensor:
    """Round to nearest, asymmetric, per group."""
    parts = weight.reshape(weight.shape[0], -1, group)
    low, high = parts.amin(-1, keepdim=True).clamp(max=0), parts.amax(-1, keepdim=True).clamp(min=0)
    scale = ((high - low) / (2**bits - 1)).clamp(min=1e-8)
    zero = (-low / scale).round()
    codes = ((parts / scale).round() + zero).clamp(0, 2**bits - 1)
    return ((codes - zero) * scale).reshape(weight.shape)


if __name__ == "__main__":
    main()
