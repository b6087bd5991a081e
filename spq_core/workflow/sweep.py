"""Run all members of a sweep on this machine, one after the other, and compare them.

    <out>/sweep.json      everything known so far, written after each member
    <out>/members.csv     a line a member
    <out>/01-small/       the first member's artifact, while it is kept

A run that ends early goes on with what is not done: finished members keep their figures, a killed one resumes.
"""

import csv
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spq_core.data.tasks import TaskData
from spq_core.data.texts import Text
from spq_core.errors import SpqError, StateMismatchError
from spq_core.evaluation.known import Shelf
from spq_core.evaluation.measure import NO_TASKS
from spq_core.evaluation.settings import EvaluationSettings
from spq_core.machine import machine_failure
from spq_core.models.clean_copy import SourceModel
from spq_core.progress import Progress
from spq_core.sweep.document import Member, Sweep, members
from spq_core.sweep.front import Best, best_member, pareto_front
from spq_core.workflow.finished import finished_run
from spq_core.workflow.job import compress_and_measure
from spq_core.workflow.result import INT8, RESULT, SOURCE

NOTES, TABLE = "sweep.json", "members.csv"
DONE, FAILED, WAITING = "done", "failed", "waiting"


@dataclass(slots=True)
class SweepState:
    """A sweep on its way."""

    sweep: Sweep
    model: str
    evaluation: EvaluationSettings
    members: tuple[Member, ...]
    outcomes: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By the recipe's digest: `status`, and `row` or `error`."""
    beside: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Figures of the source and of plain INT8."""

    @property
    def figures(self) -> dict[int, dict[str, Any]]:
        """Of the members that are done, by number."""
        return {
            one.number: self.outcomes[one.recipe.sha256()]["row"]
            for one in self.members
            if self.outcomes.get(one.recipe.sha256(), {}).get("status") == DONE
        }

    @property
    def front(self) -> tuple[int, ...]:
        """Numbers of the members that no other beats."""
        return pareto_front(self.figures, self.sweep.front)

    @property
    def best(self) -> Best:
        """The best member that keeps the limits."""
        return best_member(self.figures, self.sweep.objective)

    def document(self) -> dict[str, Any]:
        """As plain JSON values."""
        best = self.best
        return {
            "sweep": self.sweep.model_dump(mode="json"),
            "model": self.model,
            "evaluation": self.evaluation.model_dump(mode="json"),
            "beside": self.beside,
            "members": [self._member(one) for one in self.members],
            "front": list(self.front),
            "best": best.number,
            "tied": list(best.tied),
        }

    def _member(self, member: Member) -> dict[str, Any]:
        digest = member.recipe.sha256()
        outcome = self.outcomes.get(digest, {"status": WAITING})
        return {
            "number": member.number,
            "fields": member.fields,
            "recipe_sha256": digest,
            **outcome,
        }


def run_sweep(
    source: SourceModel,
    sweep: Sweep,
    out: Path,
    *,
    texts: Callable[[str], Text],
    evaluation: EvaluationSettings,
    scratch: Path,
    progress: Progress,
    device: str = "cpu",
    tasks: Mapping[str, TaskData] = NO_TASKS,
    shelf: Shelf,
    dataset: str | None = None,
    after_member: Callable[[Member, Mapping[str, Any]], None] = lambda _member, _outcome: None,
) -> SweepState:
    """Make and measure every member, and keep the artifacts that the sweep asks for.

    A member that fails is noted, and the others go on.

    Args:
        texts: finds a text by its name.
        scratch: an existing folder.
        shelf: what members have in common; see `Shelf`.
        dataset: what all members are calibrated on, in place of their recipes' text.

    Raises:
        RecipeError: the sweep has no valid members.
        StateMismatchError: `out` holds another sweep.
        OSError, MemoryError: the machine lacks something that may be there later; the sweep can be gone on with.
    """
    state = SweepState(sweep, source.name, evaluation, members(sweep, dataset))
    _take_up(state, out)
    for member in state.members:
        if state.outcomes.get(member.recipe.sha256(), {}).get("status") == DONE:
            continue
        with _own_scratch(scratch) as own:
            outcome = _outcome(
                state, member, source, out, texts, evaluation, own, progress, device, tasks, shelf
            )
        state.outcomes[member.recipe.sha256()] = outcome
        write_sweep(state, out)
        after_member(member, outcome)
    _drop_artifacts(state, out)
    return state


def write_sweep(state: SweepState, out: Path) -> None:
    """Write what is known, in one step."""
    document = state.document()
    new = out / f"{NOTES}.new"
    new.write_text(json.dumps(document, indent=1), encoding="utf-8")
    os.replace(new, out / NOTES)  # noqa: PTH105
    with (out / TABLE).open("w", encoding="utf-8", newline="") as content:
        write_table(document, csv.writer(content))


def write_table(document: Mapping[str, Any], writer: Any) -> None:
    """A line a member: what sets it apart, how it ended, and every figure of it."""
    fields = list(dict.fromkeys(name for one in document["members"] for name in one["fields"]))
    rows = [one.get("row", {}) for one in document["members"]]
    figures = list(
        dict.fromkeys(
            name for row in rows for name, value in row.items() if isinstance(value, int | float)
        )
    )
    writer.writerow(["number", *fields, "status", "on_front", "error", *figures])
    for one, row in zip(document["members"], rows, strict=True):
        own = [one["fields"].get(name, "") for name in fields]
        error = one.get("error", {}).get("message", "")
        on_front = one["number"] in document["front"]
        cells = [row.get(name, "") for name in figures]
        writer.writerow([one["number"], *own, one["status"], on_front, error, *cells])


def member_folder(out: Path, member: Member) -> Path:
    """Where a member's artifact is made."""
    return out / f"{member.number:02d}-{member.recipe.metadata.name}"


def _take_up(state: SweepState, out: Path) -> None:
    """Go on where an earlier run of the same sweep stopped; failed members are tried again."""
    out.mkdir(parents=True, exist_ok=True)
    try:
        before = json.loads((out / NOTES).read_text(encoding="utf-8"))
    except FileNotFoundError:
        write_sweep(state, out)
        return
    now = json.loads(json.dumps(state.document()))
    if any(before[part] != now[part] for part in ("sweep", "model", "evaluation")):
        raise StateMismatchError(
            f"{out} holds another sweep, or one with other settings; name a new folder"
        )
    state.beside = before["beside"]
    for one in before["members"]:
        if one["status"] == DONE:
            state.outcomes[one["recipe_sha256"]] = {"status": DONE, "row": one["row"]}


@contextmanager
def _own_scratch(scratch: Path) -> Iterator[Path]:
    own = scratch / "member"
    own.mkdir()
    try:
        yield own
    finally:
        shutil.rmtree(own, ignore_errors=True)


def _outcome(
    state: SweepState,
    member: Member,
    source: SourceModel,
    out: Path,
    texts: Callable[[str], Text],
    evaluation: EvaluationSettings,
    scratch: Path,
    progress: Progress,
    device: str,
    tasks: Mapping[str, TaskData],
    shelf: Shelf,
) -> dict[str, Any]:
    """Make and measure one member."""
    folder, recipe = member_folder(out, member), member.recipe
    names = {*evaluation.perplexity}
    if recipe.needs_calibration:
        names.add(recipe.calibration.dataset)
    try:
        if folder.exists() and finished_run(folder, recipe) is None:
            shutil.rmtree(folder)  # of an earlier run whose notes are lost
        result = compress_and_measure(
            source, recipe, folder, texts={name: texts(name) for name in names},
            evaluation=evaluation, scratch=scratch, progress=progress, device=device, tasks=tasks,
            shelf=shelf, resume=True,
        )  # fmt: skip
    except SpqError as error:
        return {"status": FAILED, "error": {"code": error.code, "message": str(error)}}
    except Exception as error:
        failure = machine_failure(error)
        if failure is None or failure.may_pass:
            raise
        return {"status": FAILED, "error": {"code": failure.code, "message": failure.message}}
    if result.missing is not None:
        missing = {"code": result.missing.code, "message": result.missing.message}
        return {"status": FAILED, "error": missing}
    rows = {row.name: row.document() for row in result.rows}
    size = rows[SOURCE]["bytes_on_disk"]
    for row in rows.values():
        row["bytes_ratio"] = row["bytes_on_disk"] / size
    state.beside |= {name: rows[name] for name in (SOURCE, INT8) if name in rows}
    seconds = {"seconds": round(result.seconds, 1)}
    return {"status": DONE, "row": rows[RESULT] | seconds}


def _drop_artifacts(state: SweepState, out: Path) -> None:
    """Keep the artifacts that the sweep asks for; figures stay of all."""
    best = state.best.number
    kept = {
        "all": {one.number for one in state.members},
        "front": {*state.front, *([] if best is None else [best])},
        "best": set() if best is None else {best},
        "none": set(),
    }[state.sweep.keep]
    for member in state.members:
        if member.number not in kept:
            shutil.rmtree(member_folder(out, member), ignore_errors=True)
