"""Weights that stay coded in memory: bytes and seconds a pass over the share that does, expected and measured.

    python benchmarks/residency.py ARTIFACT [--int8 ARTIFACT]

Shares take turns; medians of `--trials`. Expected is the time of computing plus the share of the time of decoding, each measured by itself.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from spq_core.artifact.read import load_artifact
from spq_core.artifact.residency import coded_layers, expand, measured_speeds
from spq_core.evaluation.loading import resident_bytes

FRACTIONS = (0.0, 0.25, 0.5, 0.75, 1.0)
PASSES = {"1 token": (1, 1), "16 sequences, a token each": (16, 1), "prompt of 512": (1, 512)}
CPUINFO = Path("/proc/cpuinfo")


def processor() -> str:
    """Its name, and the vectors that torch uses."""
    lines = CPUINFO.read_text(encoding="utf-8").splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else 'unknown'}, {torch.backends.cpu.get_cpu_capability()}"


@torch.no_grad()
def seconds(model: PreTrainedModel, ids: torch.Tensor) -> float:
    """Of one pass."""
    began = time.perf_counter()
    model(ids, use_cache=False, logits_to_keep=1)
    return time.perf_counter() - began


def timed(
    models: dict[float, PreTrainedModel], ids: torch.Tensor, trials: int
) -> dict[float, dict[str, float]]:
    """Each share's seconds, and those that the speeds of its parts let expect."""
    speeds = measured_speeds(models[1.0], ids.numel())
    taken: dict[float, list[float]] = {fraction: [] for fraction in models}
    for trial in range(trials + 1):
        for fraction, model in models.items():
            found = seconds(model, ids)
            if trial:  # the first learns the order
                taken[fraction].append(found)
    return {
        fraction: {"seconds": statistics.median(found), "expected": speeds.seconds(fraction)}
        for fraction, found in taken.items()
    }


def table(document: dict[str, Any]) -> str:
    """For people."""
    plain, rows = document["int8_bytes"], document["fractions"]
    titles = ["share coded", "bytes in memory", "of INT8's", *PASSES]
    lines = [f"| {' | '.join(titles)} |", f"|{'---|' * len(titles)}"]
    for fraction, row in rows.items():
        share = f"{row['bytes'] / plain:.2f}" if plain else ""
        cells = [str(fraction), f"{row['bytes']:,}", share]
        for name in PASSES:
            one, least = row[name], rows[next(iter(rows))][name]["seconds"]
            slower = f"{one['seconds'] / least:.2f}x, expected {one['expected'] * 1e3:.0f}"
            cells.append(f"{one['seconds'] * 1e3:.0f} ms ({slower})")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def measured(artifact: Path, int8: Path | None, trials: int) -> dict[str, Any]:
    """All shares, side by side."""
    models: dict[float, PreTrainedModel] = {}
    for fraction in FRACTIONS:
        models[fraction] = load_artifact(artifact, coded=1.0)
        expand(models[fraction], fraction)
    rows: dict[str, dict[str, Any]] = {
        str(fraction): {"bytes": resident_bytes(model), "matrices": len(coded_layers(model))}
        for fraction, model in models.items()
    }
    for name, (batch, length) in PASSES.items():
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(100, 1000, (batch, length), generator=generator)
        for fraction, found in timed(models, ids, trials).items():
            rows[str(fraction)][name] = found
    return {
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "int8_bytes": None if int8 is None else resident_bytes(load_artifact(int8)),
        "fractions": rows,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--int8", type=Path, help="plain INT8 of the same source, for its bytes")
    parser.add_argument("--trials", type=int, default=5)
    parser.add_argument("--out", type=Path, help="JSON here, and the table beside it")
    asked = parser.parse_args()
    document = measured(asked.artifact, asked.int8, asked.trials)
    print(table(document))
    if asked.out is not None:
        asked.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        asked.out.with_suffix(".md").write_text(table(document) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
