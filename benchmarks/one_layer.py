"""Ways to prune and round, on every matrix of one layer of SmolLM2-135M: error of its outputs and seconds.

    python benchmarks/one_layer.py [--layer 15] [--rows 64]

Evenly spaced rows of each matrix; inputs are those of WikiText-2's validation text, 32 windows of 512 tokens. Errors are squared,
relative to the outputs' energy. Results go into results/one_layer.json and .md.
"""

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.model import smollm2
from spq_core.data.texts import find_text
from spq_core.methods.quantization.gptq import Cells, gptq_round, hessian_factor, output_error
from spq_core.methods.quantization.grid import (
    Grid,
    cells_of,
    choose_grid,
    from_zero,
    round_to_grid,
)
from spq_core.methods.quantization.obc import greedy_round
from spq_core.planning.curve import sample_rows

RESULTS = Path(__file__).parent / "results"
DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
INPUTS = {
    "self_attn.q_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attn.o_proj": ("self_attn.o_proj",),
    "mlp.gate_proj": ("mlp.gate_proj", "mlp.up_proj"),
    "mlp.down_proj": ("mlp.down_proj",),
}
SETTINGS = ((4, 0.0), (3, 0.0), (8, 0.5), (4, 0.25), (4, 0.5))
"""Bits (4 and 3 in groups of 64) and the share of zeros."""
FINE = 1e-6
"""A step so fine that rounding to it is none."""


def moments(layer: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Second moments by the matrix that receives them first, and weights by matrix."""
    folder = smollm2()
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = find_text("wikitext2", DATA).calibration
    windows = tokenizer(text, return_tensors="pt").input_ids[0][: 32 * 512].view(32, 512)
    block = model.model.layers[layer]
    model.model.layers = model.model.layers[: layer + 1]
    sums: dict[str, Tensor] = {}

    def collect(name: str, _module: object, arguments: tuple[Tensor, ...]) -> None:
        rows = arguments[0].flatten(0, -2).double()
        sums[name] = sums.get(name, torch.zeros(())) + rows.T @ rows

    for name in INPUTS:
        block.get_submodule(name).register_forward_pre_hook(partial(collect, name))
    with torch.no_grad():
        for window in windows:
            model(window[None])
    weights = {
        name: block.get_submodule(name).weight.data for group in INPUTS.values() for name in group
    }
    return {name: (total / windows.numel()).float() for name, total in sums.items()}, weights


def one_after_the_other(weight: Tensor, moment: Tensor, grid: Grid, sparsity: float) -> Tensor:
    """Prune by SparseGPT, round what is left by GPTQ, and set to zero again what feedback moved."""
    factor = hessian_factor(moment)
    width = weight.shape[0]

    def fine(columns: Tensor) -> Cells:
        steps = torch.full((len(columns), width), FINE)
        highest = torch.full((len(columns), 1), 2e9)
        return Cells(steps, -highest, highest)

    pruned = gptq_round(weight, factor, fine, sparsity=sparsity, dtype=torch.int32).float() * FINE
    codes = gptq_round(pruned, factor, cells_of(grid))
    return codes.masked_fill_(pruned == 0, 0) if sparsity else codes


def methods(
    weight: Tensor, moment: Tensor, grid: Grid, sparsity: float
) -> dict[str, Callable[[], Tensor]]:
    """Codes, counted from zero, by method."""
    exact = partial(greedy_round, weight, moment, cells_of(grid), sparsity=sparsity)
    found: dict[str, Callable[[], Tensor]] = {
        "obc": exact,
        "obc, cheapest first": partial(exact, cheapest_first=True),
        "gptq": lambda: gptq_round(
            weight, hessian_factor(moment), cells_of(grid), sparsity=sparsity
        ),
        "one after the other": lambda: one_after_the_other(weight, moment, grid, sparsity),
    }
    if not sparsity:
        del found["one after the other"]
        zero = grid.zero.repeat_interleave(grid.group_size, dim=1)[:, : weight.shape[1]]
        found["nearest"] = lambda: round_to_grid(weight, grid).codes.to(torch.int16) - zero
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layer", type=int, default=15)
    parser.add_argument("--rows", type=int, default=64)
    asked = parser.parse_args()
    found, weights = moments(asked.layer)
    rows: list[dict[str, Any]] = []
    for received, group in INPUTS.items():
        moment = found[received]
        for name in group:
            weight = weights[name][sample_rows(weights[name], asked.rows)].float()
            energy = float(output_error(weight, torch.zeros_like(weight), moment).sum())
            for bits, sparsity in SETTINGS:
                grid = choose_grid(
                    weight, bits, 64 if bits < 8 else None,
                    symmetric=bits == 8, column_weights=moment.diagonal(),
                )  # fmt: skip
                row: dict[str, Any] = {"matrix": name, "bits": bits, "sparsity": sparsity}
                for method, make in methods(weight, moment, grid, sparsity).items():
                    begun = time.process_time()
                    codes = make()
                    row[f"{method} seconds"] = round(time.process_time() - begun, 2)
                    lost = output_error(weight, from_zero(codes, grid).dequantized(), moment)
                    row[method] = float(lost.sum()) / energy
                rows.append(row)
                print(row, flush=True)
    result = {"layer": asked.layer, "rows": asked.rows, "matrices": rows}
    (RESULTS / "one_layer.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "one_layer.md").write_text(table(rows), encoding="utf-8")
    print(table(rows))


def table(rows: list[dict[str, Any]]) -> str:
    """Every error, and by how much it is that of `gptq`."""
    names = ("obc", "obc, cheapest first", "one after the other", "nearest")
    lines = [f"| matrix | bits | zeros | gptq | {' | '.join(names)} |", "|---" * 8 + "|"]
    for row in rows:
        shares = [f"{row[name] / row['gptq']:.2f}x" if name in row else "" for name in names]
        lines.append(
            f"| `{row['matrix']}` | {row['bits']} | {row['sparsity']:.0%} | {row['gptq']:.6f} | {' | '.join(shares)} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
