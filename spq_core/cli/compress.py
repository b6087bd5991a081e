"""`spq compress`: the library without a server."""

import json
import shutil
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import click
from transformers.utils import logging

from spq_core.artifact.writer import require_unused
from spq_core.cli.completion import complete_recipes
from spq_core.cli.console import ConsoleProgress
from spq_core.cli.options import (
    DATA_OPTION,
    DEVICE_OPTION,
    INSTEAD_OPTION,
    JSON_OPTION,
    LENGTH_OPTION,
    REUSE_OPTION,
    REVISION_OPTION,
    TASK_LIMIT_OPTION,
    TASKS_OPTION,
    THROUGHPUT_OPTION,
    figures_shelf,
    found_tasks,
    local_source,
    named_text,
    task_names,
    text_to_mix_in,
)
from spq_core.cli.reading import reading_options
from spq_core.data.texts import mixture, texts_for
from spq_core.errors import OutputExistsError, RecipeError
from spq_core.evaluation.gates import QualityGateError
from spq_core.evaluation.loading import choose_device
from spq_core.evaluation.settings import EvaluationSettings
from spq_core.models.reading import Reading
from spq_core.recipe.catalog import DEFAULT, read_request, resolve
from spq_core.recipe.document import Recipe
from spq_core.workflow.card import figures_table, measured_on
from spq_core.workflow.finished import finished_run, forget_notes
from spq_core.workflow.fresh_process import fresh_process_ready
from spq_core.workflow.interruption import naming_resume, scratch_folder, stopped_like_by_hand
from spq_core.workflow.job import compress_and_load, compress_and_measure
from spq_core.workflow.output_lock import output_lock
from spq_core.workflow.result import RunResult


@click.command("compress")
@click.argument("model")
@click.option(
    "--recipe",
    "recipe_name",
    shell_complete=complete_recipes,
    default=DEFAULT,
    show_default=True,
    help="Catalog name, or a YAML/JSON file.",
)
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="New folder for the artifact."
)
@REVISION_OPTION
@reading_options
@INSTEAD_OPTION
@click.option(
    "--windows",
    type=click.IntRange(1),
    help="Also evaluate before and after, on this many windows.",
)
@LENGTH_OPTION
@THROUGHPUT_OPTION
@TASKS_OPTION
@TASK_LIMIT_OPTION
@REUSE_OPTION
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
    reading: Reading,
    dataset: str | None,
    windows: int | None,
    length: int | None,
    throughput: bool,
    tasks: str | None,
    task_limit: int | None,
    reuse: bool,
    resume: bool,
    device: str,
    data_dir: Path | None,
    as_json: bool,
) -> None:
    """Compress MODEL (a local folder, a GGUF file or a Hub id) into a new folder."""
    logging.disable_progress_bar()
    progress = ConsoleProgress()
    try:
        recipe = load_recipe(recipe_name, dataset)
        _require_windows(recipe, tasks, windows)
        with (
            fresh_process_ready(),  # before threads and devices are in use
            output_lock(out),
            stopped_like_by_hand(),
            naming_resume(out, resume=resume),
            scratch_folder(out) as scratch,
        ):
            if not resume or finished_run(out, recipe) is None:
                _require_unused(out, recipe)
            source = local_source(model, revision, scratch, reading)
            wanted = recipe.calibration if windows is not None else recipe.looks_at
            texts = texts_for(
                wanted, (), partial(named_text, data_dir=data_dir, scratch=scratch),
                partial(text_to_mix_in, data_dir=data_dir, scratch=scratch),
            )  # fmt: skip
            text = texts.get(recipe.calibration.dataset)
            if windows is None or text is None:
                finished = compress_and_load(
                    source, recipe, out, mixture(recipe.calibration, texts), scratch, progress,
                    resume=resume, device=choose_device(device),
                )  # fmt: skip
                forget_notes(out)
                document: dict[str, Any] = {
                    "compression": asdict(finished.report),
                    "load_check": finished.load_check and asdict(finished.load_check),
                }
            else:
                settings = EvaluationSettings(
                    perplexity=(text.name,), limit=windows, length=length, throughput=throughput, reuse=reuse,
                    tasks=task_names(tasks), task_limit=task_limit,
                )  # fmt: skip
                result = compress_and_measure(
                    source, recipe, out, texts=texts | {text.name: text},
                    evaluation=settings, scratch=scratch, progress=progress,
                    device=choose_device(device), resume=resume,
                    tasks=found_tasks(settings, data_dir, scratch),
                    shelf=figures_shelf(f"spq compress {out.name}"),
                )  # fmt: skip
                document = result.document()
                _gate(recipe, out, result)
    finally:
        progress.close()
    if as_json:
        click.echo(json.dumps({"artifact": str(out), **document}, indent=1))
    else:
        _tell(out, document)


def _require_windows(recipe: Recipe, tasks: str | None, windows: int | None) -> None:
    """Refuse what needs a measurement where none is asked for."""
    if windows is not None:
        return
    if recipe.gates.need_measurement:
        raise RecipeError(
            "the recipe has a quality gate, which needs a measurement: give --windows"
        )
    if tasks:
        raise click.UsageError("--tasks measures before and after, which needs --windows")


def _require_unused(out: Path, recipe: Recipe) -> None:
    """Refuse to write where something is.

    Raises:
        OutputExistsError: saying how to go on, if it is an artifact of this recipe that was not measured.
    """
    try:
        require_unused(out)
    except OutputExistsError:
        if finished_run(out, recipe) is None:
            raise
        raise OutputExistsError(
            str(out), "it is the artifact of an interrupted run, which --resume goes on with"
        ) from None


def _tell(out: Path, document: dict[str, Any]) -> None:
    figures = document["compression"]
    click.echo(
        f"{out}: {figures['artifact_bytes']:,} bytes, {figures['artifact_bytes'] / figures['source_bytes']:.1%} "
        f"of the source's {figures['source_bytes']:,}, in {figures['seconds']:.1f} s"
    )
    for note in figures["notes"]:
        click.echo(f"note: {note}")
    if document.get("missing"):
        click.echo(f"{document['missing']['message']}; the artifact is complete")
    elif "rows" in document:
        click.echo(figures_table(document["rows"]))
        click.echo(
            f"perplexity: {measured_on(document['evaluation']['settings'], document['rows'][-1])}"
        )
    else:
        click.echo("not measured: --windows N measures it, and writes the model card")


def load_recipe(name: str, dataset: str | None) -> Recipe:
    """A catalog recipe by name, or one from a file; `dataset` replaces its calibration dataset."""
    recipe = resolve(read_request(name))
    if dataset is None:
        return recipe
    calibration = recipe.calibration.model_copy(update={"dataset": dataset})
    return recipe.model_copy(update={"calibration": calibration})


def _gate(recipe: Recipe, out: Path, result: RunResult) -> None:
    try:
        result.check_gates()
    except QualityGateError:
        click.echo(figures_table(result.document()["rows"]), err=True)
        if recipe.gates.on_fail == "keep":
            click.echo(f"{out} stays, as gates.on_fail says", err=True)
        else:
            shutil.rmtree(out)
            click.echo(f"{out} was discarded; with gates.on_fail: keep it stays", err=True)
        raise
