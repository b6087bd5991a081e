"""Tokens per second on this CPU: source, ours and others, interleaved in one process.

    python benchmarks/decode.py [--trials 9] [--new-tokens 32] [--skip-large]

Where GPTQModel or llama-cpp-python can be imported, their 8-bit forms of SmolLM2 take part. GPTQModel
needs an environment of its own (see README.md). The share of memory bandwidth is what a token
reads (resident bytes, the embedding of an untied model aside) per second, over what summing a large
buffer reads in the same run.
"""

import argparse
import gc
import importlib
import importlib.util
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from benchmarks.model import CACHE, generated, smollm2
from spq_core.calibration.texts import builtin_text, find_text
from spq_core.catalog import resolve
from spq_core.evaluation.measure import resident_bytes
from spq_core.evaluation.throughput import Throughput, measure_throughput
from spq_core.pipeline import SourceModel, compress
from spq_core.progress import Silent

RESULTS = Path(__file__).parent / "results" / "decode.json"
LAYERS_OF_1B = 17
PREFILL_TOKENS = 512
SHORT_PROMPT = 64
BANDWIDTH_BYTES = 512 << 20
PEERS = {"GPTQModel 8 bit": "gptqmodel", "llama.cpp Q8_0": "llama_cpp"}
INT4 = {
    "metadata": {"name": "int4"},
    "stages": [{"type": "quantize", "bits": 4, "group_size": 64, "scale_search": False}],
}


def artifact(source: Path, name: str, recipe: str | dict[str, Any]) -> Path:
    """An artifact of a model, made once."""
    target = CACHE / f"{source.name}-{name}"
    if not (target / "config.json").is_file():
        data = os.environ.get("SPQ_DATA_DIR")
        text = find_text("wikitext2", Path(data)) if data else builtin_text()
        compress(
            SourceModel(folder=source, name=source.name), resolve(recipe), target,
            text=text, progress=Silent(),
        )  # fmt: skip
    return target


def load(folder: Path, dtype: torch.dtype | str = "auto") -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


def small_rows() -> dict[str, Callable[[], Any]]:
    source = smollm2()
    rows: dict[str, Callable[[], Any]] = {
        "source bf16": lambda: load(source),
        "source fp32": lambda: load(source, torch.float32),
        "int8": lambda: load(artifact(source, "int8", "int8")),
        "balanced": lambda: load(artifact(source, "balanced", "balanced")),
        "int4": lambda: load(artifact(source, "int4", INT4)),
    }
    for title, package in PEERS.items():
        if importlib.util.find_spec(package):
            peer = importlib.import_module(f"benchmarks.peer_{package}")
            rows[title] = lambda peer=peer: peer.load(source)
    return rows


def large_rows() -> dict[str, Callable[[], Any]]:
    source = generated(LAYERS_OF_1B)
    return {
        "source bf16": lambda: load(source),
        "source fp32": lambda: load(source, torch.float32),
        "int8": lambda: load(artifact(source, "int8", "int8")),
        "int4": lambda: load(artifact(source, "int4", INT4)),
    }


def bandwidth() -> float:
    """Bytes per second that summing a buffer larger than any cache reads."""
    buffer = torch.ones(BANDWIDTH_BYTES // 4)
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        buffer.sum()
        seconds.append(time.perf_counter() - started)
    return BANDWIDTH_BYTES / statistics.median(seconds)


def measured(rows: Mapping[str, Callable[[], Any]], options: argparse.Namespace) -> dict[str, Any]:
    models = {name: make() for name, make in rows.items()}
    prompt = torch.arange(100, 100 + PREFILL_TOKENS)
    speeds = measure_throughput(
        models, prompt[:SHORT_PROMPT], new_tokens=options.new_tokens, trials=options.trials
    )
    prefill = measure_throughput(models, prompt, new_tokens=1, trials=options.trials)
    peak = bandwidth()
    source = speeds["source bf16"].decode.median
    fastest = max(prefill[name].prefill.median for name in ("source bf16", "source fp32"))
    return {
        name: {
            "bytes": (size := getattr(model, "bytes", None) or resident_bytes(model)),
            "decode": rate(speeds[name], "decode"),
            "decode_over_bf16": speeds[name].decode.median / source,
            "bandwidth_share": size * speeds[name].decode.median / peak,
            "prefill": rate(prefill[name], "prefill"),
            "prefill_over_faster_source": prefill[name].prefill.median / fastest,
        }
        for name, model in models.items()
    } | {"bandwidth_bytes_per_second": peak}


def rate(speed: Throughput, what: str) -> dict[str, float]:
    found = getattr(speed, what)
    return {"median": found.median, "lowest": found.lowest, "highest": found.highest}


def shown(title: str, figures: Mapping[str, Any]) -> Iterator[str]:
    yield f"{title}; memory read at {figures['bandwidth_bytes_per_second'] / 1e9:.1f} GB/s"
    yield "| model | MB in memory | decode, tokens/s | over bf16 | bandwidth | prefill, tokens/s | over the faster source |"
    yield "|---|---|---|---|---|---|---|"
    for name, row in figures.items():
        if isinstance(row, dict):
            yield (
                f"| {name} | {row['bytes'] / 1e6:.0f} | {row['decode']['median']:.1f} "
                f"({row['decode']['lowest']:.1f}–{row['decode']['highest']:.1f}) | {row['decode_over_bf16']:.2f}x | "
                f"{row['bandwidth_share']:.0%} | {row['prefill']['median']:.0f} | {row['prefill_over_faster_source']:.2f}x |"
            )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--trials", type=int, default=9)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--skip-large", action="store_true")
    options = parser.parse_args()
    logging.disable_progress_bar()
    report: dict[str, Any] = {
        "machine": platform.platform(),
        "processor": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "trials": options.trials,
    }
    report["SmolLM2-135M"] = measured(small_rows(), options)
    print("\n".join(shown("SmolLM2-135M", report["SmolLM2-135M"])))
    gc.collect()
    if not options.skip_large:
        report["generated Llama, 1.1B"] = measured(large_rows(), options)
        print("\n".join(shown("generated Llama, 1.1B", report["generated Llama, 1.1B"])))
    RESULTS.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
