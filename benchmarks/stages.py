"""Our pipeline against the authors' procedure, stage by stage, interleaved in one run."""

import json
import os
import platform
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import torch
from authors import prune_stage, quantize_stage, svd_stage
from model import smollm2
from transformers import AutoModelForCausalLM

from spq_core.compression.compress import SourceModel, compress
from spq_core.data.calibration import Calibration
from spq_core.data.samples import calibration_samples
from spq_core.data.texts import builtin_text
from spq_core.recipe.document import parse_recipe

ROUNDS = 3
RESULTS = Path(__file__).parent / "results" / "stages.json"
STAGES = {
    "svd": {"type": "svd", "variance": 0.96},
    "prune": {"type": "prune", "max_ratio": 0.05},
    "quantize": {"type": "quantize", "mode": "mix_percentile", "embedding": False},
}
CALIBRATION = {"dataset": "builtin", "samples": 8, "length": 128}


def ours(folder: Path, stages: list[str]) -> float:
    """Seconds of a streamed compression, reading and writing included."""
    recipe = parse_recipe({"stages": [STAGES[name] for name in stages], "calibration": CALIBRATION})
    out = Path(tempfile.mkdtemp()) / "out"
    started = time.perf_counter()
    compress(SourceModel(folder=folder, name="smollm2"), recipe, out, text=builtin_text())
    seconds = time.perf_counter() - started
    shutil.rmtree(out.parent)
    return seconds


def theirs(folder: Path) -> dict[str, float]:
    """Seconds per stage in memory; loading and saving are not counted."""
    windows = calibration_samples(Calibration(**CALIBRATION), builtin_text(), folder).rows
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    steps = {
        "svd": lambda: svd_stage(model, 0.96),
        "prune": lambda: prune_stage(model, windows, 0.05),
        "quantize": lambda: quantize_stage(model),
    }
    seconds = {}
    for name, step in steps.items():
        started = time.perf_counter()
        step()
        seconds[name] = time.perf_counter() - started
    return seconds | {"all three": sum(seconds.values())}


def main() -> None:
    folder = smollm2()
    our_rounds: dict[str, list[float]] = {name: [] for name in (*STAGES, "all three")}
    their_rounds: dict[str, list[float]] = {name: [] for name in (*STAGES, "all three")}
    for _ in range(ROUNDS):
        for name in STAGES:
            our_rounds[name].append(ours(folder, [name]))
        our_rounds["all three"].append(ours(folder, list(STAGES)))
        for name, seconds in theirs(folder).items():
            their_rounds[name].append(seconds)
    rows = {}
    print("| stage | ours, s | authors' procedure, s | ratio |\n|---|---|---|---|")
    for name, seconds in our_rounds.items():
        mine, other = statistics.median(seconds), statistics.median(their_rounds[name])
        rows[name] = {
            "ours_seconds": seconds, "authors_seconds": their_rounds[name], "ratio": other / mine,
        }  # fmt: skip
        print(f"| {name} | {mine:.2f} | {other:.2f} | {other / mine:.2f}x |")
    report = {
        "machine": platform.platform(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(
        json.dumps(report | {"rounds": ROUNDS, "rows": rows}, indent=1) + "\n", encoding="utf-8"
    )


if __name__ == "__main__":
    main()
