"""How many calibration tokens a matrix wants: error on rows it has not seen, over tokens per input.

    python benchmarks/calibration_tokens.py [--inputs 4096] [--outputs 512]

One generated wide layer: inputs with a spectrum that falls as a power of the rank, as those of language
models do, and a few that are a hundred times as strong as the rest. Its weight is rounded to 4 bits with
error feedback, and half of its inputs' directions are removed by SVD and an eighth of its inputs by pruning,
each on moments of T tokens and tried on tokens of their own. Prints one JSON line a point.
"""

import argparse
import json

import torch
from torch import Tensor

from spq_core.methods.pruning.compensation import compensate, score_neurons
from spq_core.methods.quantization.gptq import hessian_factor
from spq_core.methods.quantization.grid import choose_grid, round_to_grid
from spq_core.methods.svd.factorize import decompose_output, project_outputs
from spq_core.streaming.inverse import DAMPING
from spq_core.streaming.moments import InputMoments
from spq_core.streaming.shrinkage import extra_damping

RATIOS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
POWER = 0.6
STRONG = 8
HELD_OUT = 4096


def mixing(inputs: int, generator: torch.Generator) -> Tensor:
    """Directions of the inputs, the strongest first, and a few strong inputs."""
    spectrum = torch.arange(1, inputs + 1, dtype=torch.float32) ** -POWER
    basis = torch.linalg.qr(torch.randn(inputs, inputs, generator=generator))[0]
    mixed = spectrum[:, None] * basis
    mixed[:, torch.randperm(inputs, generator=generator)[:STRONG]] *= 100
    return mixed


def errors(weight: Tensor, moments: InputMoments, held_out: Tensor) -> dict[str, float]:
    """Relative squared output error on held-out rows, by method."""
    wanted = held_out @ weight.T
    total = float(wanted.square().sum())

    def error(outputs: Tensor) -> float:
        return float((outputs - wanted).square().sum()) / total

    grid = choose_grid(weight, 4, 64)
    rounded = round_to_grid(weight, grid, hessian_factor(moments.second_moment)).dequantized()
    damping = DAMPING + extra_damping(moments)
    spectrum = decompose_output(weight, moments.second_moment, damping=damping)
    up, down = project_outputs(weight, spectrum, weight.shape[0] // 2)
    scores = score_neurons("obs", weight, moments)
    kept = torch.topk(scores, weight.shape[1] * 7 // 8).indices.sort().values
    cut = compensate("least_squares", weight, None, kept, moments).weight
    plain = compensate("none", weight, None, kept, moments).weight
    return {
        "gptq_4_bits": error(held_out @ rounded.T),
        "round_4_bits": error(held_out @ round_to_grid(weight, grid).dequantized().T),
        "svd_half": error(held_out @ down.T @ up.T),
        "prune_eighth": error(held_out[:, kept] @ cut.T),
        "prune_eighth_without_update": error(held_out[:, kept] @ plain.T),
    }


def main() -> None:
    """Print the curve."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--inputs", type=int, default=4096)
    parser.add_argument("--outputs", type=int, default=512)
    options = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    mixed = mixing(options.inputs, generator)
    weight = torch.randn(options.outputs, options.inputs, generator=generator)
    held_out = torch.randn(HELD_OUT, options.inputs, generator=generator) @ mixed
    for ratio in RATIOS:
        tokens = int(ratio * options.inputs)
        second_moment, mean = (
            torch.zeros(options.inputs, options.inputs),
            torch.zeros(options.inputs),
        )
        for start in range(0, tokens, HELD_OUT):
            count = min(HELD_OUT, tokens - start)
            rows = torch.randn(count, options.inputs, generator=generator) @ mixed
            second_moment.addmm_(rows.T, rows)
            mean += rows.sum(dim=0)
        moments = InputMoments(mean / tokens, second_moment / tokens, tokens)
        found = {name: round(value, 5) for name, value in errors(weight, moments, held_out).items()}
        print(json.dumps({"tokens_per_input": ratio, "tokens": tokens} | found), flush=True)


if __name__ == "__main__":
    main()
