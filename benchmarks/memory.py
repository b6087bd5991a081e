"""Peak memory of a streamed compression beside the checkpoint's bytes, each in a process of its own.

    python benchmarks/memory.py ["generated mixture" ...]

Of checkpoints that are named, only their rows are measured anew.
"""

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

from model import MIXTURE, generated, smollm2

GIB = 1 << 30
RESULTS = Path(__file__).parent / "results" / "memory.json"


def compress(folder: Path, recipe: str) -> dict[str, float]:
    """Run `spq compress` and return its report's figures."""
    scratch = Path(tempfile.mkdtemp(dir=Path(__file__).parent / ".cache"))
    command = [
        sys.executable, "-m", "worker.cli", "compress", str(folder), "--recipe", recipe,
        "--dataset", "builtin", "--out", str(scratch / "out"), "--json",
    ]  # fmt: skip
    answer = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    shutil.rmtree(scratch)
    report = json.loads(answer.stdout)["compression"]
    return {
        key: report[key] for key in ("source_bytes", "artifact_bytes", "peak_rss_bytes", "seconds")
    }


def main() -> None:
    rows = []
    print(
        "| checkpoint | recipe | bytes | peak RSS | limit: bytes/4 + 1 GiB | seconds |\n|---|---|---|---|---|---|"
    )
    models = {
        "SmolLM2-135M": smollm2,
        "generated Llama": generated,
        "generated mixture": partial(generated, MIXTURE),
    }
    chosen = sys.argv[1:] or models
    rows = json.loads(RESULTS.read_text(encoding="utf-8"))["rows"] if sys.argv[1:] else []
    rows = [row for row in rows if row["checkpoint"] not in chosen]
    for name in chosen:
        folder = models[name]()
        for recipe in (
            ("int8", "balanced") if "mixture" in name else ("int8", "spq-paper", "balanced")
        ):
            row = compress(folder, recipe)
            limit = row["source_bytes"] / 4 + GIB
            rows.append({"checkpoint": name, "recipe": recipe, "limit_bytes": limit, **row})
            print(
                f"| {name} | {recipe} | {row['source_bytes']:,} | {row['peak_rss_bytes']:,} "
                f"({row['peak_rss_bytes'] / row['source_bytes']:.2f}x) | {limit:,.0f} | {row['seconds']:.0f} |"
            )
    RESULTS.parent.mkdir(exist_ok=True)
    report = {"machine": platform.platform(), "cores": os.cpu_count(), "rows": rows}
    RESULTS.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
