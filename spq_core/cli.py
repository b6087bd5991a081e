"""`spq compress | evaluate`: the library without a server."""

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from transformers.utils import logging

from spq_core.artifact.card import figures_table
from spq_core.artifact.manifest import MANIFEST_FILE, read_manifest, verify_files
from spq_core.calibration.texts import BUILTIN, Text, builtin_text, find_text
from spq_core.catalog import read_request, resolve
from spq_core.console import ConsoleProgress
from spq_core.errors import DatasetError, EvaluationError, RecipeError, SpqError
from spq_core.evaluation.figure import require_drawable, write_figure
from spq_core.evaluation.measure import choose_device, measure
from spq_core.evaluation.settings import EvaluationSettings
from spq_core.evaluation.summary import summary_rows
from spq_core.hub.client import hub_api
from spq_core.hub.datasets import fetch_text
from spq_core.hub.errors import HubUnavailableError
from spq_core.hub.fetch import FetchLimits, fetch_model, require_named
from spq_core.pipeline import SourceModel
from spq_core.recipe import Recipe
from spq_core.run import RunResult, compress_and_load, compress_and_measure

DEVICE_OPTION = click.option(
    "--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N."
)
JSON_OPTION = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
DATA_OPTION = click.option(
    "--data-dir",
    envvar="SPQ_DATA_DIR",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder with <name>-test.txt and <name>-valid.txt for datasets by name.",
)


@click.command("compress")
@click.argument("model")
@click.option(
    "--recipe",
    "recipe_name",
    default="balanced",
    show_default=True,
    help="Catalog name, or a YAML/JSON file.",
)
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="New folder for the artifact."
)
@click.option(
    "--revision", default="main", show_default=True, help="Branch, tag or commit of a Hub model."
)
@click.option(
    "--dataset",
    help="Text to calibrate and evaluate on instead of the recipe's: wikitext2, c4, builtin, or a name in --data-dir.",
)
@click.option(
    "--windows",
    type=click.IntRange(1),
    help="Also evaluate before and after, on this many windows.",
)
@click.option(
    "--length",
    type=click.IntRange(16, 32768),
    help="Tokens per evaluation window; 1024, or the model's context if shorter.",
)
@click.option(
    "--resume",
    is_flag=True,
    help="Go on where an earlier run of the same command was killed or interrupted.",
)
@DEVICE_OPTION
@DATA_OPTION
@JSON_OPTION
def compress_command(
    model: str,
    recipe_name: str,
    out: Path,
    revision: str,
    dataset: str | None,
    windows: int | None,
    length: int | None,
    resume: bool,
    device: str,
    data_dir: Path | None,
    as_json: bool,
) -> None:
    """Compress MODEL (a local folder or a Hub id) into a new folder."""
    logging.disable_progress_bar()
    progress = ConsoleProgress()
    try:
        recipe = load_recipe(recipe_name, dataset)
        if recipe.gates.need_measurement and windows is None:
            raise RecipeError(
                "the recipe has a quality gate, which needs a measurement: give --windows"
            )
        with (
            _naming_resume(out),
            tempfile.TemporaryDirectory(prefix="spq-", dir=_existing_parent(out)) as scratch,
        ):
            source = _source(model, revision, Path(scratch))
            text: Text | None = None
            if recipe.needs_calibration or windows is not None:
                text = _text(recipe.calibration.dataset, data_dir, Path(scratch))
            if windows is None or text is None:
                report, load_check = compress_and_load(
                    source, recipe, out, text, Path(scratch), progress,
                    resume=resume, device=choose_device(device),
                )  # fmt: skip
                document: dict[str, Any] = {
                    "compression": asdict(report),
                    "load_check": asdict(load_check),
                }
            else:
                settings = EvaluationSettings(perplexity=(text.name,), limit=windows, length=length)
                result = compress_and_measure(
                    source, recipe, out, texts={text.name: text, recipe.calibration.dataset: text},
                    evaluation=settings, scratch=Path(scratch), progress=progress,
                    device=choose_device(device), resume=resume,
                )  # fmt: skip
                document = result.document()
                _gate(recipe, out, result)
    finally:
        progress.close()
    if as_json:
        click.echo(json.dumps({"artifact": str(out), **document}, indent=1))
        return
    figures = document["compression"]
    click.echo(
        f"{out}: {figures['artifact_bytes']:,} bytes, {figures['artifact_bytes'] / figures['source_bytes']:.1%} "
        f"of the source's {figures['source_bytes']:,}, in {figures['seconds']:.1f} s"
    )
    if "rows" in document:
        click.echo(figures_table(document["rows"]))


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
@click.option(
    "--length",
    type=click.IntRange(16, 32768),
    help="Tokens per window; 1024, or the model's context if shorter.",
)
@click.option(
    "--reference",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Source model: adds KL and top-1.",
)
@click.option("--throughput/--no-throughput", default=True, help="Time prefill and decoding.")
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
    device: str,
    data_dir: Path | None,
    as_json: bool,
) -> None:
    """Measure a model folder, compressed or not."""
    if (folder / MANIFEST_FILE).is_file():
        verify_files(folder, read_manifest(folder))
    folders = {"model": folder} if reference is None else {"reference": reference, "model": folder}
    logging.disable_progress_bar()
    progress = ConsoleProgress()
    try:
        with tempfile.TemporaryDirectory(prefix="spq-") as scratch:
            text = _file_text(data) if data is not None else _text(dataset, data_dir, Path(scratch))
        settings = EvaluationSettings(
            perplexity=(text.name,), limit=windows, length=length, throughput=throughput
        )
        measurement = measure(
            folders, {text.name: text}, settings, progress,
            reference="reference" if reference is not None else None,
            device=choose_device(device),
        )  # fmt: skip
    finally:
        progress.close()
    rows = [asdict(row) for row in summary_rows(measurement)]
    if as_json:
        document = rows[-1] | {"rows": rows, "evaluation": asdict(measurement)}
        click.echo(json.dumps(document, indent=1))
    else:
        click.echo(figures_table(rows))


@click.command("compare")
@click.argument(
    "folders",
    nargs=-1,
    required=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
)
@click.option(
    "--dataset",
    default="wikitext2",
    show_default=True,
    help="Text by name: wikitext2, c4, builtin, or a name in --data-dir.",
)
@click.option(
    "--windows", default=32, show_default=True, type=click.IntRange(1), help="Number of windows."
)
@click.option("--throughput/--no-throughput", default=True, help="Time prefill and decoding.")
@click.option(
    "--figure",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Also draw a figure: a .png, .svg or .pdf file.",
)
@DEVICE_OPTION
@DATA_OPTION
@JSON_OPTION
def compare_command(
    folders: tuple[Path, ...],
    dataset: str,
    windows: int,
    throughput: bool,
    figure: Path | None,
    device: str,
    data_dir: Path | None,
    as_json: bool,
) -> None:
    """Measure model folders side by side; KL and top-1 are against the first."""
    if len({folder.resolve().name for folder in folders}) < len(folders):
        raise EvaluationError(
            "two of the folders have one name; the table could not tell them apart"
        )
    if figure is not None:
        require_drawable(figure)
    logging.disable_progress_bar()
    named = {folder.resolve().name: folder for folder in folders}
    for folder in folders:
        if (folder / MANIFEST_FILE).is_file():
            verify_files(folder, read_manifest(folder))
    progress = ConsoleProgress()
    try:
        with tempfile.TemporaryDirectory(prefix="spq-") as scratch:
            text = _text(dataset, data_dir, Path(scratch))
        settings = EvaluationSettings(perplexity=(text.name,), limit=windows, throughput=throughput)
        measurement = measure(
            named, {text.name: text}, settings, progress,
            reference=next(iter(named)), device=choose_device(device),
        )  # fmt: skip
    finally:
        progress.close()
    found = summary_rows(measurement)
    if figure is not None:
        write_figure(found, figure)
    rows = [asdict(row) for row in found]
    if as_json:
        click.echo(json.dumps({"rows": rows, "evaluation": asdict(measurement)}, indent=1))
    else:
        click.echo(figures_table(rows))


def load_recipe(name: str, dataset: str | None) -> Recipe:
    """A catalog recipe by name, or one from a file; `dataset` replaces its calibration dataset."""
    recipe = resolve(read_request(name))
    if dataset is None:
        return recipe
    calibration = recipe.calibration.model_copy(update={"dataset": dataset})
    return recipe.model_copy(update={"calibration": calibration})


def _source(model: str, revision: str, scratch: Path) -> SourceModel:
    if Path(model).is_dir():
        return SourceModel(folder=Path(model), name=Path(model).resolve().name)
    require_named(model)
    fetched = fetch_model(
        hub_api(None, None), model, revision, scratch / "source", limits=FetchLimits()
    )
    return SourceModel(folder=fetched.folder, name=model, revision=fetched.commit)


def _text(name: str, data_dir: Path | None, scratch: Path) -> Text:
    """The named text from the data folder, else from the Hub, else the built-in one."""
    if data_dir is not None or name == BUILTIN:
        return find_text(name, data_dir)
    try:
        fetch_text(hub_api(None, None), name, scratch)
    except HubUnavailableError as error:
        text = builtin_text()
        click.echo(f"{error}: using {text.origin} instead of {name}", err=True)
        return text
    return find_text(name, scratch)


def _file_text(path: Path) -> Text:
    try:
        evaluation = path.read_text(encoding="utf-8")
    except UnicodeError:
        raise DatasetError(f"{path.name} is not a UTF-8 text file") from None
    origin = f"file {path.name}"
    return Text(name=path.name, calibration="", evaluation=evaluation, origin=origin)


def _gate(recipe: Recipe, out: Path, result: RunResult) -> None:
    try:
        result.check_gates()
    except SpqError:
        if recipe.gates.on_fail == "discard":
            shutil.rmtree(out)
        raise


@contextmanager
def _naming_resume(out: Path) -> Iterator[None]:
    """Tell whoever interrupts a run how to go on with it."""
    try:
        yield
    except KeyboardInterrupt:
        if out.is_dir():
            told = f"interrupted while measuring; {out} is complete, `spq compare` measures it"
        elif out.with_name(f"{out.name}.state").is_dir():
            told = (
                "interrupted; the same command with --resume goes on from the last finished layer"
            )
        else:
            told = "interrupted; nothing was finished yet"
        raise click.ClickException(told) from None


def _existing_parent(out: Path) -> Path:
    parent = out.absolute().parent
    parent.mkdir(parents=True, exist_ok=True)
    return parent
