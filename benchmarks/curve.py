"""Perplexity, KL and top-1 against bytes: our recipes beside plain rounding and a library's GPTQ.

    python benchmarks/curve.py MODEL --data DATA [--library FOLDER ...] [--windows 32]

Every row is made or loaded, measured on disk, and scored by the same code in one process. Library
rows are folders that `library_gptq.py` wrote. Writes `results/curve.csv`, `.json` and `.png`.
"""

import argparse
import csv
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt

from spq_core.calibration.texts import Text, local_text
from spq_core.catalog import resolve
from spq_core.console import ConsoleProgress
from spq_core.evaluation.measure import measure
from spq_core.evaluation.settings import EvaluationSettings
from spq_core.evaluation.summary import summary_rows
from spq_core.pipeline import SourceModel, compress

RESULTS = Path(__file__).parent / "results"
GROUPS = {"type": "quantize", "method": "round", "group_size": 32, "symmetric": False}


def shared_out(base: str, ratio: float, rule: str) -> dict[str, Any]:
    """A recipe of the catalog at another size, or with bytes shared out by another rule."""
    return {"extends": base, "target": {"bytes_ratio": ratio, "allocation": rule}}


OURS: dict[str, Any] = {
    "spq-paper": "spq-paper",
    "int8": "int8",
    "round 4 bit": {"stages": [GROUPS | {"bits": 4}]},
    "round 3 bit": {"stages": [GROUPS | {"bits": 3}]},
    "spq": "spq",
    "balanced": "balanced",
    "small": "small",
    "smallest": "smallest",
    "0.5 uniform": shared_out("balanced", 0.5, "uniform"),
    "0.35": shared_out("small", 0.35, "loss"),
    "0.35 uniform": shared_out("small", 0.35, "uniform"),
    "0.28 uniform": shared_out("small", 0.28, "uniform"),
    "0.28 pgsvd": shared_out("small", 0.28, "pgsvd"),
    "0.28 mgaa": shared_out("small", 0.28, "mgaa"),
}
KINDS = {"round": "round to nearest", "library": "GPTQ (library)"}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--library", type=Path, nargs="*", default=[])
    parser.add_argument("--windows", type=int, default=32)
    parser.add_argument("--work", type=Path, default=Path(__file__).parent / ".cache" / "curve")
    parser.add_argument("--only", nargs="*", default=list(OURS))
    options = parser.parse_args()
    text = local_text("wikitext2", options.data)
    folders = {"source": options.model}
    for name in options.only:
        folders[name] = made(options.model, name, text, options.work)
    folders |= {f"library {folder.name}": folder for folder in options.library}
    settings = EvaluationSettings(
        perplexity=(text.name,), limit=options.windows, length=1024, throughput=False
    )
    measurement = measure(
        folders, {text.name: text}, settings, ConsoleProgress(), reference="source"
    )
    rows = [asdict(row) for row in summary_rows(measurement)]
    for row in rows:
        packed = folders[row["name"]] / "bytes.json"
        if packed.is_file():
            row["bytes_on_disk"] = json.loads(packed.read_text(encoding="utf-8"))["bytes"]
    write(rows, measurement.settings)


def made(model: Path, name: str, text: Text, work: Path) -> Path:
    """The artifact of a row; made once."""
    out = work / name.replace(" ", "-")
    if not out.is_dir():
        compress(
            SourceModel(folder=model, name=model.name), resolve(OURS[name]), out,
            text=text, progress=ConsoleProgress(), resume=True,
        )  # fmt: skip
    return out


def write(rows: list[dict[str, Any]], settings: dict[str, Any]) -> None:
    RESULTS.mkdir(exist_ok=True)
    document = {"settings": settings, "rows": rows}
    (RESULTS / "curve.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    with (RESULTS / "curve.csv").open("w", newline="", encoding="utf-8") as handle:
        table = csv.DictWriter(handle, ["name", "bytes_on_disk", "perplexity", "kl", "top1"])
        table.writeheader()
        table.writerows({key: row[key] for key in table.fieldnames} for row in rows)
    mpl.use("agg")
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.5))
    base = rows[0]["perplexity"]
    for row in rows[1:]:
        kind = KINDS.get(row["name"].split()[0], "ours")
        kind = "the paper, plain INT8" if row["name"] in {"spq-paper", "int8"} else kind
        style = {"ours": "o", "round to nearest": "x", "GPTQ (library)": "s"}.get(kind, "^")
        megabytes = row["bytes_on_disk"] / 1e6
        for axis, value in zip(axes, (row["perplexity"] / base - 1, row["kl"]), strict=True):
            axis.plot(megabytes, max(value, 1e-4), style, color="C0" if kind == "ours" else "C1")
            axis.annotate(row["name"], (megabytes, max(value, 1e-4)), fontsize=7)
    for axis, label in zip(axes, ("perplexity over the source's, less 1", "KL"), strict=True):
        axis.set(xlabel="MB on disk", ylabel=label, yscale="log")
    figure.tight_layout()
    figure.savefig(RESULTS / "curve.png", dpi=120)


if __name__ == "__main__":
    main()
