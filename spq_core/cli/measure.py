"""`spq evaluate | compare`: any models side by side."""

import json
import sys
import tempfile
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource
from transformers.utils import logging

from spq_core.artifact.manifest import MANIFEST_FILE, read_manifest, verify_files
from spq_core.cli.console import ConsoleProgress
from spq_core.cli.options import (
    DATA_OPTION,
    DEVICE_OPTION,
    JSON_OPTION,
    LENGTH_OPTION,
    TASK_LIMIT_OPTION,
    TASKS_OPTION,
    THROUGHPUT_OPTION,
    found_tasks,
    named_text,
    task_names,
)
from spq_core.data.text_files import read_text
from spq_core.data.texts import Text
from spq_core.errors import EvaluationError
from spq_core.evaluation.drawing import require_drawable
from spq_core.evaluation.figure import write_figure
from spq_core.evaluation.gguf import SUFFIX
from spq_core.evaluation.loading import choose_device
from spq_core.evaluation.measure import Measurement, measure
from spq_core.evaluation.settings import EvaluationSettings
from spq_core.evaluation.summary import summary_rows
from spq_core.workflow.card import figures_table, measured_on


@click.command("evaluate")
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--data",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Text file to score.",
)
@click.option(
    "--dataset",
    default="wikitext2",
    show_default=True,
    help="Text by name when no file is given: wikitext2, c4, builtin, or a name in --data-dir.",
)
@click.option("--windows", type=click.IntRange(1), help="Number of windows; all by default.")
@LENGTH_OPTION
@click.option(
    "--reference",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Source model: adds KL and top-1.",
)
@THROUGHPUT_OPTION
@TASKS_OPTION
@TASK_LIMIT_OPTION
@DEVICE_OPTION
@DATA_OPTION
@JSON_OPTION
def evaluate_command(
    folder: Path,
    data: Path | None,
    dataset: str,
    windows: int | None,
    length: int | None,
    reference: Path | None,
    throughput: bool,
    tasks: str | None,
    task_limit: int | None,
    device: str,
    data_dir: Path | None,
    as_json: bool,
) -> None:
    """Measure a model folder, compressed or not."""
    given = click.get_current_context().get_parameter_source("dataset")
    if data is not None and given is not ParameterSource.DEFAULT:
        raise click.UsageError("--data and --dataset both name the text; give one of them")
    models = {"model": folder} if reference is None else {"reference": reference, "model": folder}
    settings = {
        "limit": windows, "length": length, "throughput": throughput,
        "tasks": task_names(tasks), "task_limit": task_limit,
    }  # fmt: skip
    measurement = _measured(
        models, data or dataset, settings, device, data_dir,
        reference="reference" if reference is not None else None,
    )  # fmt: skip
    rows = [row.document() for row in summary_rows(measurement)]
    if as_json:
        document = rows[-1] | {"rows": rows, "evaluation": asdict(measurement)}
        click.echo(json.dumps(document, indent=1))
    else:
        click.echo(figures_table(rows))
        click.echo(f"perplexity: {measured_on(measurement.settings, rows[-1])}")


@click.command("compare")
@click.argument("models", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option(
    "--dataset",
    default="wikitext2",
    show_default=True,
    help="Text by name: wikitext2, c4, builtin, or a name in --data-dir.",
)
@click.option(
    "--windows", default=32, show_default=True, type=click.IntRange(1), help="Number of windows."
)
@THROUGHPUT_OPTION
@TASKS_OPTION
@TASK_LIMIT_OPTION
@click.option(
    "--figure",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Also draw a figure: a .png, .svg or .pdf file.",
)
@DEVICE_OPTION
@DATA_OPTION
@JSON_OPTION
def compare_command(
    models: tuple[Path, ...],
    dataset: str,
    windows: int,
    throughput: bool,
    tasks: str | None,
    task_limit: int | None,
    figure: Path | None,
    device: str,
    data_dir: Path | None,
    as_json: bool,
) -> None:
    """Measure models side by side: folders, and GGUF files after the first.

    KL and top-1 are against the first. Folders of other libraries (GPTQ, bitsandbytes, torchao) need
    those libraries; GGUF files need llama-cpp-python.
    """
    named = {path.resolve().name: path for path in models}
    if len(named) < len(models):
        raise EvaluationError(
            "two of the folders have one name; the table could not tell them apart"
        )
    for place, path in enumerate(models):
        if not path.is_dir() and (path.suffix != SUFFIX or place == 0):
            wanted = (
                f"a folder or a {SUFFIX} file" if place else "a folder, as its tokenizer is used"
            )
            raise EvaluationError(f"{path}: give {wanted}")
    if figure is not None:
        require_drawable(figure)
    settings = {
        "limit": windows, "throughput": throughput,
        "tasks": task_names(tasks), "task_limit": task_limit,
    }  # fmt: skip
    measurement = _measured(named, dataset, settings, device, data_dir, reference=next(iter(named)))
    found = summary_rows(measurement)
    if figure is not None:
        write_figure(found, figure)
    rows = [row.document() for row in found]
    if as_json:
        click.echo(json.dumps({"rows": rows, "evaluation": asdict(measurement)}, indent=1))
    else:
        click.echo(figures_table(rows))
        click.echo(f"perplexity: {measured_on(measurement.settings, rows[-1])}")


def _measured(
    models: Mapping[str, Path],
    data: Path | str,
    settings: Mapping[str, Any],
    device: str,
    data_dir: Path | None,
    *,
    reference: str | None,
) -> Measurement:
    """Measure on a file, or on a text by name, after checking the digests of artifacts."""
    for path in models.values():
        if (path / MANIFEST_FILE).is_file():
            verify_files(path, read_manifest(path))
    logging.disable_progress_bar()
    progress = ConsoleProgress()
    wanted = EvaluationSettings(**settings)
    try:
        with (
            tempfile.TemporaryDirectory(prefix="spq-") as folder,
            redirect_stdout(sys.stderr),  # other libraries talk while they load
        ):
            scratch = Path(folder)
            files = found_tasks(wanted, data_dir, scratch)
            text = (
                _file_text(data) if isinstance(data, Path) else named_text(data, data_dir, scratch)
            )
            return measure(
                models, {text.name: text}, wanted.model_copy(update={"perplexity": (text.name,)}),
                progress, reference=reference, device=choose_device(device), tasks=files,
            )  # fmt: skip
    finally:
        progress.close()


def _file_text(path: Path) -> Text:
    origin = f"file {path.name}"
    return Text(name=path.name, calibration="", evaluation=read_text(path), origin=origin)
