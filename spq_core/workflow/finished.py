"""An artifact that is finished and not measured yet: noted beside it, so that nobody compresses it again.

    <out>.finished.json        the report, what the load gate found, how often measuring began
    <out>.probe.safetensors    what the load gate compares with
    <out>.figures/             what was measured so far; see `evaluation.known`

A process that dies while it measures leaves them, and the next one goes on with what is not measured yet.
"""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from spq_core.artifact.manifest import (
    MANIFEST_FILE,
    file_sha256,
    read_manifest,
)
from spq_core.compression.provenance import weights_digest
from spq_core.errors import ArtifactError, StateMismatchError
from spq_core.recipe.document import Recipe
from spq_core.report import CompressionReport, ModuleReport
from spq_core.workflow.load_gate import LoadCheck


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedRun:
    """A compression that came to its end."""

    report: CompressionReport
    load_check: LoadCheck | None
    """None until the artifact has passed the load gate."""
    measurings: int = 0
    """How often measuring it has begun."""


def probe_path(out: Path) -> Path:
    """Where a run that writes `out` notes what the result computes in memory."""
    return out.with_name(f"{out.name}.probe.safetensors")


def note_path(out: Path) -> Path:
    """Where it notes that it is finished."""
    return out.with_name(f"{out.name}.finished.json")


def figures_path(out: Path) -> Path:
    """Where it notes what it has measured."""
    return out.with_name(f"{out.name}.figures")


def note_finished(out: Path, run: FinishedRun, source: Path) -> None:
    """Write the note, in one step.

    Args:
        source: the model folder that was compressed.
    """
    document = {
        "source_sha256": weights_digest(source),
        "manifest_sha256": file_sha256(out / MANIFEST_FILE),
        "report": asdict(run.report),
        "load_check": None if run.load_check is None else asdict(run.load_check),
        "measurings": run.measurings,
    }
    new = note_path(out).with_suffix(".new")
    new.write_text(json.dumps(document), encoding="utf-8")
    os.replace(new, note_path(out))  # noqa: PTH105


def finished_run(out: Path, recipe: Recipe, source: Path | None = None) -> FinishedRun | None:
    """What an earlier run of this recipe finished in `out`; None if there is none, or another's.

    Args:
        source: the model folder whose weights it must be of; any, if left out.

    Raises:
        StateMismatchError: it is the artifact of other weights.
    """
    try:
        document = json.loads(note_path(out).read_text(encoding="utf-8"))
        if document["manifest_sha256"] != file_sha256(out / MANIFEST_FILE):
            return None
        if document["report"]["recipe_sha256"] != recipe.sha256():
            return None
        found = _read(document)
        of_others = source is not None and document["source_sha256"] != weights_digest(source)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if of_others:
        raise StateMismatchError(
            f"{out.name} holds the finished artifact of other weights; finish that run, or name another folder"
        )
    return found


def finished_before(
    out: Path, compression: Mapping[str, Any], load_check: Mapping[str, Any]
) -> FinishedRun:
    """The run that made an artifact, from what was kept of it elsewhere.

    Args:
        compression: its report without the matrices, which the artifact's manifest has.

    Raises:
        ArtifactError: the folder is no artifact, or the report is none of it.
    """
    manifest = read_manifest(out)
    names = {one.name for one in fields(CompressionReport)} - {
        "modules",
        "notes",
        "recipe",
        "theoretical_rate",
    }
    try:
        report = CompressionReport(
            **{name: compression[name] for name in names},
            recipe=manifest.recipe,
            modules=tuple(ModuleReport(**module) for module in manifest.modules),
            theoretical_rate=compression.get("theoretical_rate"),
            notes=tuple(compression["notes"]),
        )
        check = LoadCheck(**load_check)
    except (KeyError, TypeError) as error:
        raise ArtifactError(f"the report of {out.name} is incomplete: {error}") from None
    if report.recipe_sha256 != manifest.recipe_sha256:
        raise ArtifactError(f"{out.name} is the artifact of another recipe than its job had")
    return FinishedRun(report=report, load_check=check)


def _read(document: dict[str, Any]) -> FinishedRun:
    report = document["report"]
    modules = tuple(ModuleReport(**module) for module in report.pop("modules"))
    notes = tuple(report.pop("notes"))
    check = document["load_check"]
    return FinishedRun(
        report=CompressionReport(**report, modules=modules, notes=notes),
        load_check=None if check is None else LoadCheck(**check),
        measurings=int(document["measurings"]),
    )


def begin_measuring(out: Path, run: FinishedRun, source: Path) -> FinishedRun:
    """Count one more beginning."""
    begun = replace(run, measurings=run.measurings + 1)
    note_finished(out, begun, source)
    return begun


def forget_notes(out: Path) -> None:
    """Remove what lies beside the artifact."""
    note_path(out).unlink(missing_ok=True)
    probe_path(out).unlink(missing_ok=True)
    shutil.rmtree(figures_path(out), ignore_errors=True)
