"""`spq sweep`: many recipes on one model, and which of them are worth taking."""

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import click
from transformers.utils import logging

from spq_core.cli.completion import complete_shipped_sweeps
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
    figures_shelf,
    found_tasks,
    local_source,
    named_text,
    task_names,
    text_to_mix_in,
)
from spq_core.cli.reading import reading_options
from spq_core.data.texts import Text
from spq_core.errors import RecipeError
from spq_core.estimate.estimate import Estimate, estimate, folder_shapes
from spq_core.evaluation.certainty import shown
from spq_core.evaluation.drawing import require_drawable
from spq_core.evaluation.loading import choose_device
from spq_core.evaluation.settings import EvaluationSettings
from spq_core.models.clean_copy import SourceModel, clean_copy
from spq_core.models.reading import Reading
from spq_core.models.shapes import ModelShapes
from spq_core.sweep.document import Bisect, Sweep, named_sweep, require_measured
from spq_core.sweep.figure import draw_sweep
from spq_core.sweep.members import Member, members
from spq_core.sweep.search import is_too_large
from spq_core.sweep.tables import (
    FAILED,
    SKIPPED,
    STOPPED,
    SUCCEEDED,
    member_name,
    sweep_table,
)
from spq_core.workflow.fresh_process import fresh_process_ready
from spq_core.workflow.interruption import scratch_folder, stopped_like_by_hand
from spq_core.workflow.output_lock import output_lock
from spq_core.workflow.sweep import SweepState, run_sweep

NONE_FEASIBLE = 7


class _InterruptedError(click.ClickException):
    """As shells have it: 128 and the signal's number."""

    exit_code = 130


DATASET = "wikitext2"
WITHOUT_FINALS = "spq compare measures the folders that are kept side by side, with speeds, on any text (--dataset)"


@click.command("sweep")
@click.argument("model")
@click.argument("sweep", shell_complete=complete_shipped_sweeps)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Folder for figures and artifacts; goes on with what is in it.",
)
@REVISION_OPTION
@reading_options
@INSTEAD_OPTION
@click.option(
    "--windows", default=32, show_default=True, type=click.IntRange(1), help="Number of windows."
)
@LENGTH_OPTION
@TASKS_OPTION
@TASK_LIMIT_OPTION
@REUSE_OPTION
@click.option(
    "--figure",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Also draw the members by the figures of the front: a .png, .svg or .pdf file.",
)
@click.option("--dry-run", is_flag=True, help="Only tell the members, and what they would take.")
@DEVICE_OPTION
@DATA_OPTION
@JSON_OPTION
def sweep_command(
    model: str,
    sweep: str,
    out: Path | None,
    revision: str,
    reading: Reading,
    dataset: str | None,
    windows: int,
    length: int | None,
    tasks: str | None,
    task_limit: int | None,
    reuse: bool,
    figure: Path | None,
    dry_run: bool,
    device: str,
    data_dir: Path | None,
    as_json: bool,
) -> None:
    """Make and measure every member of SWEEP (a shipped one by name, or a YAML file) for MODEL.

    Members share figures of the source and of plain INT8, and, where only sizes differ, the look at the source. Speeds are not
    measured: taken at different moments, they would not be comparable (`spq compare` takes them side by side).
    """
    chosen = named_sweep(sweep)
    settings = EvaluationSettings(
        perplexity=(dataset or DATASET,), limit=windows, length=length, throughput=False, reuse=reuse,
        tuned_control=False, tasks=task_names(tasks), task_limit=task_limit,
    )  # fmt: skip
    require_measured(chosen, settings.tasks)
    if dry_run:
        _foretell(chosen, model, settings, reading)
        return
    if out is None:
        raise click.UsageError("--out names the folder for figures and artifacts")
    if figure is not None:
        require_drawable(figure)
    logging.disable_progress_bar()
    progress = ConsoleProgress()
    try:
        with (
            fresh_process_ready(),  # before threads and devices are in use
            output_lock(out),
            stopped_like_by_hand(),
            scratch_folder(out) as scratch,
            _readable(local_source(model, revision, scratch, reading), scratch) as source,
        ):
            needed = {dataset or DATASET} | {
                one.recipe.calibration.dataset for one in members(chosen, dataset)
            }

            @cache
            def text(name: str) -> Text:
                find = named_text if name in needed else text_to_mix_in
                return find(name, data_dir, scratch)

            settings = settings.model_copy(update={"perplexity": (text(dataset or DATASET).name,)})
            state = run_sweep(
                source, chosen, out,
                texts=text, evaluation=settings, scratch=scratch, progress=progress,
                device=choose_device(device),
                tasks=found_tasks(settings, data_dir, scratch),
                shelf=figures_shelf(f"spq sweep {out.name}"), dataset=dataset,
                after_member=_tell_member,
            )  # fmt: skip
    except KeyboardInterrupt:
        raise _InterruptedError(
            f"interrupted; the same command goes on with what is in {out}"
        ) from None
    finally:
        progress.close()
    _end(state, chosen, figure, as_json=as_json)


@contextmanager
def _readable(source: SourceModel, scratch: Path) -> Iterator[SourceModel]:
    """What has to be widened is widened once for all members."""
    if source.reading.file is None and not source.reading.allow_requantize:
        yield source
        return
    with clean_copy(source, scratch) as copy:
        yield copy


def _end(state: SweepState, sweep: Sweep, figure: Path | None, *, as_json: bool) -> None:
    """Show what the sweep came to, and end with its exit code."""
    document = state.document()
    if figure is not None:
        draw_sweep(document, figure)
    if sweep.finals is not None:
        click.echo(f"finals are left out: {WITHOUT_FINALS}", err=True)
    click.echo(json.dumps(document, indent=1) if as_json else sweep_table(document))
    if not state.figures and any(one["status"] == FAILED for one in document["members"]):
        sys.exit(1)
    if document["best"] is None:
        sys.exit(NONE_FEASIBLE)


def _foretell(sweep: Sweep, model: str, settings: EvaluationSettings, reading: Reading) -> None:
    folder = Path(model) / reading.subfolder
    has_headers = folder.is_dir() and reading.file is None
    shapes = folder_shapes(folder, reading) if has_headers else None
    minutes = 0.0
    for member in members(sweep):
        words = ""
        if shapes is not None:
            found, words = _foretold(sweep, member, shapes, settings)
            minutes += 0.0 if found is None else found.seconds.expected / 60
        click.echo(f"{member.number:>3}  {member_name(member.fields)}{words}")
    if shapes is None:
        click.echo(f"no estimates: {model} is no folder with safetensors here", err=True)
    else:
        click.echo(f"together about {minutes:,.0f} minutes on two cores, less what members share")
    if isinstance(sweep.search, Bisect):
        click.echo("and others between the last two, as their figures ask for")


def _foretold(
    sweep: Sweep, member: Member, shapes: ModelShapes, settings: EvaluationSettings
) -> tuple[Estimate | None, str]:
    """What a member would take, in words too; None if it would not be made."""
    try:
        found = estimate(member.recipe, shapes, settings)
    except RecipeError as error:
        return None, f": will fail: {error}"
    size = found.artifact_bytes
    if sweep.early_stop.skip_infeasible_estimates and is_too_large(
        sweep.objective, size.low, found.source_bytes
    ):
        return None, f": skipped, {STOPPED['infeasible']} ({size.expected / 1e6:,.0f} MB)"
    minutes = found.seconds.expected / 60
    return found, f"  {size.expected / 1e6:,.0f} MB, {minutes:,.1f} minutes"


def _tell_member(member: Member, outcome: Mapping[str, Any]) -> None:
    """On stderr, as progress is."""
    if outcome["status"] == SUCCEEDED:
        row = outcome["row"]
        words = f"{row['bytes_ratio']:.1%} of the source, KL {shown(row['kl'], '.4f')}"
    elif outcome["status"] == SKIPPED:
        why = (outcome.get("error") or {}).get("message") or STOPPED[outcome["stopped"]]
        words = f"skipped: {why}"
    else:
        words = f"failed: {outcome['error']['message']}"
    click.echo(f"{member.number}: {member_name(member.fields)}: {words}", err=True)
