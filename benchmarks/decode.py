"""Tokens per second on this CPU: source, ours and others, each in a process, taking turns.

    python benchmarks/decode.py [--trials 9] [--new-tokens 32] [--skip-large]
        [--peers PYTHON] [--gptqmodel FOLDER]

PYTHON is the interpreter of an environment with GPTQModel and llama-cpp-python (see README.md), FOLDER
what `gptqmodel_quantize.py` made. The share of memory bandwidth is what a token reads (all bytes of the
weights) per second, over what summing a large buffer reads in the same run.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.model import CACHE, ONE_BILLION, generated, q8_0_file, smollm2
from spq_core.compression.compress import SourceModel, compress
from spq_core.data.texts import builtin_text, find_text
from spq_core.progress import Silent
from spq_core.recipe.catalog import resolve
from worker.threads import PASSIVE_THREADS, SPINNING_THREADS

RESULTS = Path(__file__).parent / "results" / "decode.json"
CHILD = Path(__file__).parent / "decode_child.py"
PREFILL_TOKENS, SHORT_PROMPT = 512, 64
BANDWIDTH_BYTES = 512 << 20
THREADS = PASSIVE_THREADS | SPINNING_THREADS
"""As of a runner that is alone on its cores; the same for all rows."""
INT4 = {
    "metadata": {"name": "int4"},
    "stages": [{"type": "quantize", "bits": 4, "group_size": 64}],
}


class Row(NamedTuple):
    """A model and how it is loaded."""

    kind: str
    path: Path
    dtype: str = "auto"
    python: str = sys.executable


class Child:
    """A process that times one model when told to."""

    def __init__(self, row: Row) -> None:
        environment = os.environ | THREADS | {"PYTHONPATH": str(CHILD.parent.parent)}
        self.process = subprocess.Popen(
            [row.python, str(CHILD), row.kind, str(row.path), row.dtype],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            text=True, env=environment,
        )  # fmt: skip
        self.about = self._answer()

    def trial(self, prompt: int, new: int) -> dict[str, float]:
        assert self.process.stdin is not None
        print(json.dumps({"prompt": prompt, "new": new}), file=self.process.stdin, flush=True)
        return self._answer()

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def _answer(self) -> dict[str, float]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.process.args} ended with {self.process.wait()}")
        answer: dict[str, float] = json.loads(line)
        return answer


def artifact(source: Path, name: str, recipe: str | dict[str, Any]) -> Row:
    """An artifact of a model, made once."""
    target = CACHE / f"{source.name}-{name}"
    if not (target / "config.json").is_file():
        data = os.environ.get("SPQ_DATA_DIR")
        text = find_text("wikitext2", Path(data)) if data else builtin_text()
        compress(
            SourceModel(folder=source, name=source.name), resolve(recipe), target,
            text=text, progress=Silent(),
        )  # fmt: skip
    return Row("checkpoint", target)


def small_rows(options: argparse.Namespace) -> dict[str, Row]:
    source = smollm2()
    rows = {
        "source bf16": Row("checkpoint", source),
        "source fp32": Row("checkpoint", source, "float32"),
        "int8": artifact(source, "int8", "int8"),
        "balanced": artifact(source, "balanced", "balanced"),
        "int4": artifact(source, "int4", INT4),
    }
    if options.gptqmodel:
        rows["GPTQModel 8 bit"] = Row("gptqmodel", options.gptqmodel, python=options.peers)
    if options.peers:
        rows["llama.cpp Q8_0"] = Row("llama_cpp", q8_0_file(), python=options.peers)
    return rows


def large_rows() -> dict[str, Row]:
    source = generated(ONE_BILLION)
    return {
        "source bf16": Row("checkpoint", source),
        "source fp32": Row("checkpoint", source, "float32"),
        "int8": artifact(source, "int8", "int8"),
        "int4": artifact(source, "int4", INT4),
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


def measured(rows: Mapping[str, Row], options: argparse.Namespace) -> dict[str, Any]:
    children = {name: Child(row) for name, row in rows.items()}
    decode: dict[str, list[float]] = {name: [] for name in rows}
    prefill: dict[str, list[float]] = {name: [] for name in rows}
    read: list[float] = []
    for trial in range(options.trials + 1):  # the first one warms up
        for name, child in children.items():
            short = child.trial(SHORT_PROMPT, options.new_tokens)
            long = child.trial(PREFILL_TOKENS, 1)
            if trial:
                decode[name].append((options.new_tokens - 1) / short["decode"])
                prefill[name].append(PREFILL_TOKENS / long["prefill"])
        read.append(bandwidth())
    for child in children.values():
        child.close()
    fastest = max(statistics.median(prefill[name]) for name in ("source bf16", "source fp32"))
    source, peak = statistics.median(decode["source bf16"]), statistics.median(read)
    return {"bandwidth_bytes_per_second": peak} | {
        name: {
            "bytes": child.about["bytes"],
            "decode": spread(decode[name]),
            "decode_over_bf16": statistics.median(decode[name]) / source,
            "bandwidth_share": child.about["bytes"] * statistics.median(decode[name]) / peak,
            "prefill": spread(prefill[name]),
            "prefill_over_faster_source": statistics.median(prefill[name]) / fastest,
        }
        for name, child in children.items()
    }


def spread(rates: list[float]) -> dict[str, float]:
    return {"median": statistics.median(rates), "lowest": min(rates), "highest": max(rates)}


def shown(title: str, figures: Mapping[str, Any]) -> Iterator[str]:
    yield f"{title}; memory read at {figures['bandwidth_bytes_per_second'] / 1e9:.1f} GB/s"
    yield (
        "| model | MB in memory | decode, tokens/s | over bf16 | bandwidth | prefill, tokens/s "
        "| over the faster source |\n|---|---|---|---|---|---|---|"
    )
    for name, row in figures.items():
        if isinstance(row, dict):
            speed = row["decode"]
            yield (
                f"| {name} | {row['bytes'] / 1e6:.0f} "
                f"| {speed['median']:.1f} ({speed['lowest']:.1f}–{speed['highest']:.1f}) "
                f"| {row['decode_over_bf16']:.2f}x | {row['bandwidth_share']:.0%} "
                f"| {row['prefill']['median']:.0f} | {row['prefill_over_faster_source']:.2f}x |"
            )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--trials", type=int, default=9)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--skip-large", action="store_true")
    parser.add_argument("--peers")
    parser.add_argument("--gptqmodel", type=Path)
    options = parser.parse_args()
    report: dict[str, Any] = {
        "machine": platform.platform(),
        "processor": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "environment": THREADS,
        "trials": options.trials,
    }
    models = {"SmolLM2-135M": small_rows(options)}
    if not options.skip_large:
        models["generated Llama, 1.1B"] = large_rows()
    for title, rows in models.items():
        report[title] = measured(rows, options)
        print("\n".join(shown(title, report[title])), flush=True)
    RESULTS.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
