"""`spq sweep`: many recipes on one model, and which of them are worth taking."""

import json
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import click
from transformers.utils import logging

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
    local_source,
    named_text,
    task_names,
)
from spq_core.data.texts import Text
from spq_core.estimate.estimate import estimate, folder_shapes
from spq_core.evaluation.certainty import warning
from spq_core.evaluation.loading import choose_device
from spq_core.evaluation.measure import task_files
from spq_core.evaluation.settings import EvaluationSettings
from spq_core.sweep.document import Member, Sweep, members, named_sweep
from spq_core.workflow.interruption import scratch_folder, stopped_like_by_hand
from spq_core.workflow.output_lock import output_lock
from spq_core.workflow.sweep import run_sweep

NONE_FEASIBLE = 7
DATASET = "wikitext2"


@click.command("sweep")
@click.argument("model")
@click.argument("sweep")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Folder for figures and artifacts; goes on with what is in it.",
)
@REVISION_OPTION
@INSTEAD_OPTION
@click.option(
    "--windows", default=32, show_default=True, type=click.IntRange(1), help="Number of windows."
)
@LENGTH_OPTION
@TASKS_OPTION
@TASK_LIMIT_OPTION
@REUSE_OPTION
@click.option("--dry-run", is_flag=True, help="Only tell the members, and what they would take.")
@DEVICE_OPTION
@DATA_OPTION
@JSON_OPTION
def sweep_command(
    model: str,
    sweep: str,
    out: Path | None,
    revision: str,
    dataset: str | None,
    windows: int,
    length: int | None,
    tasks: str | None,
    task_limit: int | None,
    reuse: bool,
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
    if dry_run:
        _foretell(chosen, model, settings)
        return
    if out is None:
        raise click.UsageError("--out names the folder for figures and artifacts")
    logging.disable_progress_bar()
    progress = ConsoleProgress()
    try:
        with output_lock(out), stopped_like_by_hand(), scratch_folder(out) as scratch:

            @cache
            def text(name: str) -> Text:
                return named_text(name, data_dir, scratch)

            settings = settings.model_copy(update={"perplexity": (text(dataset or DATASET).name,)})
            state = run_sweep(
                local_source(model, revision, scratch), chosen, out,
                texts=text, evaluation=settings, scratch=scratch, progress=progress,
                device=choose_device(device),
                tasks=task_files(settings, [data_dir] if data_dir is not None else []),
                shelf=figures_shelf(f"spq sweep {out.name}"), dataset=dataset,
                after_member=_tell_member,
            )  # fmt: skip
    except KeyboardInterrupt:
        raise click.ClickException(
            f"interrupted; the same command goes on with what is in {out}"
        ) from None
    finally:
        progress.close()
    document = state.document()
    click.echo(json.dumps(document, indent=1) if as_json else sweep_table(document))
    if not state.figures:
        sys.exit(1)
    if document["best"] is None:
        sys.exit(NONE_FEASIBLE)


def _foretell(sweep: Sweep, model: str, settings: EvaluationSettings) -> None:
    shapes = folder_shapes(Path(model)) if Path(model).is_dir() else None
    minutes = 0.0
    for member in members(sweep):
        line = f"{member.number:>3}  {_named(member.fields)}"
        if shapes is not None:
            found = estimate(member.recipe, shapes, settings)
            minutes += found.seconds.expected / 60
            line += f"  {found.artifact_bytes.expected / 1e6:,.0f} MB, {found.seconds.expected / 60:,.1f} minutes"
        click.echo(line)
    if shapes is not None:
        click.echo(f"together about {minutes:,.0f} minutes on two cores, less what members share")


def _tell_member(member: Member, outcome: Mapping[str, Any]) -> None:
    """On stderr, as progress is."""
    if outcome["status"] == "done":
        row = outcome["row"]
        words = f"{row['bytes_ratio']:.1%} of the source, KL {row['kl']:.4f}"
    else:
        words = f"failed: {outcome['error']['message']}"
    click.echo(f"{member.number}: {_named(member.fields)}: {words}", err=True)


def sweep_table(document: Mapping[str, Any]) -> str:
    """The members as a table in Markdown, with the source and plain INT8, the front marked, and the best in words."""
    lines = [
        "| | member | bytes | of source | perplexity | KL | top-1 | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [_line("", name, row, "") for name, row in document["beside"].items()]
    for one in document["members"]:
        mark = "best" if one["number"] == document["best"] else ""
        if one["number"] in document["tied"]:
            mark = "tied with the best"
        on_front = "front" if one["number"] in document["front"] else ""
        words = ", ".join(part for part in (on_front, mark) if part)
        if one["status"] == "done":
            lines.append(_line(str(one["number"]), _named(one["fields"]), one["row"], words))
        else:
            why = one.get("error", {}).get("message", "not done yet")
            lines.append(
                f"| {one['number']} | {_named(one['fields'])} | {one['status']}: {why} | | | | | |"
            )
    return "\n".join([*lines, "", _verdict(document)])


def _verdict(document: Mapping[str, Any]) -> str:
    objective = document["sweep"]["objective"]
    wanted = (
        f"lowest {objective['minimize']}"
        if objective["minimize"]
        else f"highest {objective['maximize']}"
    )
    limits = ", ".join(
        f"{name} {sign} {limit:g}"
        for name, both in objective["subject_to"].items()
        for sign, limit in (("at least", both["min"]), ("at most", both["max"]))
        if limit is not None
    )
    asked = f"{wanted}{f' with {limits}' if limits else ''}"
    if document["best"] is None:
        return f"No member is the {asked}: none keeps the limits."
    named = {one["number"]: one for one in document["members"]}
    best = named[document["best"]]
    words = f"{asked[0].upper()}{asked[1:]}: member {best['number']} ({_named(best['fields'])})"
    if document["tied"]:
        words += f", which so much text does not tell from {', '.join(map(str, document['tied']))}"
    done = [one for one in document["members"] if one["status"] == "done"]
    words += (
        f". It is the best of {len(done)} on the text that chose it; on another it may be less so."
    )
    note = warning(best["row"])
    return f"{words}\n\n**{note}**" if note else words


def _line(number: str, name: str, row: Mapping[str, Any], words: str) -> str:
    kl = "–" if row.get("kl") is None else f"{row['kl']:.4f}{_error(row, 'kl', '.4f')}"
    top1 = "–" if row.get("top1") is None else f"{row['top1']:.1%}"
    return (
        f"| {number} | {name} | {row['bytes_on_disk']:,} | {row['bytes_ratio']:.1%} | "
        f"{row['perplexity']:.3f}{_error(row, 'perplexity', '.3f')} | {kl} | {top1} | {words} |"
    )


def _error(row: Mapping[str, Any], name: str, form: str) -> str:
    error = row.get(f"{name}_se")
    return "" if error is None else f" ± {error:{form}}"


def _named(fields: Mapping[str, Any]) -> str:
    rest = ", ".join(f"{path} {value}" for path, value in fields.items() if path != "recipe")
    return f"{fields['recipe']}{f': {rest}' if rest else ''}"
