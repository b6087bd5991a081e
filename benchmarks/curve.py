"""Perplexity, KL and top-1 against bytes: our recipes beside plain rounding and a library's GPTQ.

    python benchmarks/curve.py MODEL --data DATA [--library FOLDER ...] [--windows 32]

Every row is made or loaded, measured on disk, and scored by the same code in one process. Library
rows are folders that `library_gptq.py` wrote. Besides WikiText-2, rows are scored on two texts that
are nothing like it: GSM8K's problems with their solutions, if the data folder has them, and the
Python language reference. Writes `results/curve.csv`, `.json` and `.png`; rows of an
earlier run with the same settings stay there if `--only` leaves them out.
"""

import argparse
import csv
import json
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib import pyplot as plt

from spq_core.cli.console import ConsoleProgress
from spq_core.compression.compress import SourceModel, compress
from spq_core.data.texts import Text, builtin_text, local_text
from spq_core.evaluation.measure import measure
from spq_core.evaluation.settings import EvaluationSettings
from spq_core.evaluation.summary import Row, summary_rows
from spq_core.recipe.catalog import resolve

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
    "gptq-8": "gptq-8",
    "gptq-4": "gptq-4",
    "joint-25-4": "joint-25-4",
    "sparsegpt-50": "sparsegpt-50",
    "spq": "spq",
    "prune-only": "prune-only",
    "prune-heads": {"extends": "prune-only", "stages": [{"type": "prune-heads", "ratio": "auto"}]},
    "balanced": "balanced",
    "small": "small",
    "smallest": "smallest",
    "0.5 uniform": shared_out("balanced", 0.5, "uniform"),
    "0.35": shared_out("small", 0.35, "loss"),
    "0.18": shared_out("small", 0.18, "loss"),
    "0.35 uniform": shared_out("small", 0.35, "uniform"),
    "0.28 uniform": shared_out("small", 0.28, "uniform"),
    "0.28 pgsvd": shared_out("small", 0.28, "pgsvd"),
    "0.28 mgaa": shared_out("small", 0.28, "mgaa"),
}
FIGURES = ("perplexity", "kl", "top1")
KINDS = {
    "round": "round to nearest",
    "library": "GPTQ (library)",
    "uniform": "other allocation",
    "pgsvd": "other allocation",
    "mgaa": "other allocation",
    "paper": "the paper's rule",
    "int8": "plain INT8",
}
STYLES = {
    "ours": "oC0", "round to nearest": "xC3", "GPTQ (library)": "sC1", "other allocation": ".C7",
    "the paper's rule": "^C4", "plain INT8": "DC2",
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--library", type=Path, nargs="*", default=[])
    parser.add_argument("--windows", type=int, help="of WikiText-2; all by default")
    parser.add_argument("--other-windows", type=int, default=12, help="of each other text")
    parser.add_argument("--work", type=Path, default=Path(__file__).parent / ".cache" / "curve")
    parser.add_argument("--only", nargs="*", default=list(OURS))
    options = parser.parse_args()
    text = local_text("wikitext2", options.data)
    folders = {"source": options.model}
    for name in options.only:
        folders[name] = made(options.model, name, text, options.work)
    folders |= {f"library {folder.name}": folder for folder in options.library}
    texts = {text.name: text, **other_texts(options.data)}
    scored = {
        name: scores(folders, one, options.windows if one is text else options.other_windows)
        for name, one in texts.items()
    }
    rows = []
    for row in scored[text.name].rows:
        record: dict[str, Any] = {"name": row.name, "bytes_on_disk": row.bytes_on_disk}
        packed = folders[row.name] / "bytes.json"
        if packed.is_file():
            record["bytes_on_disk"] = json.loads(packed.read_text(encoding="utf-8"))["bytes"]
        for name, found in scored.items():
            other = next(one for one in found.rows if one.name == row.name)
            record |= {f"{name} {key}": other.quality[key] for key in FIGURES}
        rows.append(record)
    write(rows, {name: found.settings for name, found in scored.items()}, text.name)


class Scores(NamedTuple):
    """All rows on one text."""

    rows: tuple[Row, ...]
    settings: dict[str, Any]


def scores(folders: dict[str, Path], text: Text, windows: int | None) -> Scores:
    settings = EvaluationSettings(
        perplexity=(text.name,), limit=windows, length=1024, throughput=False
    )
    measurement = measure(
        folders, {text.name: text}, settings, ConsoleProgress(), reference="source"
    )
    return Scores(summary_rows(measurement), measurement.settings)


def other_texts(data: Path) -> dict[str, Text]:
    """Texts of other kinds than the one that recipes calibrate on."""
    found = {"reference": builtin_text()}
    problems = data / "gsm8k-test.jsonl"
    if problems.is_file():
        rows = [json.loads(line) for line in problems.read_text(encoding="utf-8").splitlines()]
        solved = "\n\n".join(f"{row['question']}\n{row['answer']}" for row in rows)
        found["gsm8k"] = Text(
            name="gsm8k", calibration="", evaluation=solved, origin=f"local file {problems.name}"
        )
    return found


def made(model: Path, name: str, text: Text, work: Path) -> Path:
    """The artifact of a row; made once."""
    out = work / name.replace(" ", "-")
    if not out.is_dir():
        compress(
            SourceModel(folder=model, name=model.name), resolve(OURS[name]), out,
            text=text, progress=ConsoleProgress(), resume=True,
        )  # fmt: skip
    return out


def with_earlier(rows: list[dict[str, Any]], settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Add the rows that an earlier run with the same settings made, and this one did not."""
    earlier = RESULTS / "curve.json"
    if not earlier.is_file():
        return rows
    document = json.loads(earlier.read_text(encoding="utf-8"))
    if document["settings"] != json.loads(json.dumps(settings)):
        return rows
    made_now = {row["name"]: row for row in rows}
    merged = [made_now.pop(row["name"], row) for row in document["rows"]]
    return [*merged, *made_now.values()]


def write(rows: list[dict[str, Any]], settings: dict[str, Any], text: str) -> None:
    RESULTS.mkdir(exist_ok=True)
    rows = with_earlier(rows, settings)
    document = {"settings": settings, "rows": rows}
    (RESULTS / "curve.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    with (RESULTS / "curve.csv").open("w", newline="", encoding="utf-8") as handle:
        table = csv.DictWriter(handle, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    mpl.use("agg")
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.5))
    base = rows[0][f"{text} perplexity"]
    for row in rows[1:]:
        kind = next((kind for word, kind in KINDS.items() if word in row["name"]), "ours")
        megabytes = row["bytes_on_disk"] / 1e6
        values = (row[f"{text} perplexity"] / base - 1, row[f"{text} kl"])
        for axis, value in zip(axes, values, strict=True):
            axis.plot(megabytes, max(value, 1e-4), STYLES[kind], label=kind)
            axis.annotate(row["name"], (megabytes, max(value, 1e-4)), fontsize=6)
    for axis, label in zip(axes, ("perplexity over the source's, less 1", "KL"), strict=True):
        axis.set(xlabel="MB on disk", ylabel=label, yscale="log")
        handles, labels = axis.get_legend_handles_labels()
        first = dict(zip(labels, handles, strict=True))
        axis.legend(first.values(), first.keys(), fontsize=7)
    figure.tight_layout()
    figure.savefig(RESULTS / "curve.png", dpi=120)


if __name__ == "__main__":
    main()
