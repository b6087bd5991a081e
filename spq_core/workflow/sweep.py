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

from spq_core.compression.provenance import weights_digest
from spq_core.data.tasks import TaskData
from spq_core.data.texts import Text, texts_for
from spq_core.errors import RecipeError, SpqError, StateMismatchError
from spq_core.estimate.estimate import folder_shapes
from spq_core.estimate.sizes import artifact_bytes
from spq_core.evaluation.known import Shelf
from spq_core.evaluation.measure import NO_TASKS
from spq_core.evaluation.settings import EvaluationSettings
from spq_core.machine import machine_failure
from spq_core.models.clean_copy import SourceModel
from spq_core.progress import Progress
from spq_core.sweep.document import Sweep
from spq_core.sweep.front import Verdict, judge
from spq_core.sweep.members import Member, members
from spq_core.sweep.outcome import compared
from spq_core.sweep.search import Tried, is_too_large, next_members, stops
from spq_core.sweep.tables import FAILED, SKIPPED, SUCCEEDED, write_table
from spq_core.workflow.finished import finished_run
from spq_core.workflow.job import compress_and_measure

NOTES, TABLE = "sweep.json", "members.csv"
WAITING = "waiting"
PARTS = {
    "sweep": "its document differs", "model": "of another model",
    "evaluation": "with other windows, lengths or tasks", "inputs": "of other weights or texts",
}  # fmt: skip


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
    inputs: dict[str, Any] = field(default_factory=dict)
    """Digests of weights and texts."""

    @property
    def figures(self) -> dict[int, dict[str, Any]]:
        """Of the members that are done, by number."""
        return {
            member.number: dict(one.row)
            for member, one in zip(self.members, self.tried(), strict=True)
            if one.stands and one.row is not None
        }

    @property
    def verdict(self) -> Verdict:
        """How the members compare."""
        return judge(self.sweep, self.figures)

    def tried(self) -> list[Tried]:
        """All members, and what is known of them."""
        return [self._tried(one) for one in self.members]

    def document(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            "sweep": self.sweep.model_dump(mode="json"),
            "model": self.model,
            "evaluation": self.evaluation.model_dump(mode="json"),
            "inputs": self.inputs,
            "beside": self.beside,
            "members": [self._member(one) for one in self.members],
            **self.verdict.document(),
        }

    def _tried(self, member: Member) -> Tried:
        outcome = self.outcomes.get(member.recipe.sha256(), {"status": WAITING})
        status = outcome["status"]
        return Tried(
            member.fields,
            member.recipe.sha256(),
            status != WAITING,
            status == FAILED,
            outcome.get("row"),
        )

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
    _take_up(state, out, _identity(state, source, texts))
    too_large = _size_rule(source.folder, sweep)
    while (member := _next(state, dataset)) is not None:
        if (infeasible := too_large(member)) is not None:
            outcome = {"status": SKIPPED, "stopped": "infeasible", **infeasible}
        elif (why := stops(sweep, state.tried())) is not None:
            outcome = {"status": SKIPPED, "stopped": why}
        else:
            with _own_scratch(scratch) as own:
                outcome = _outcome(
                    state,
                    member,
                    source,
                    out,
                    texts,
                    evaluation,
                    own,
                    progress,
                    device,
                    tasks,
                    shelf,
                )
        state.outcomes[member.recipe.sha256()] = outcome
        write_sweep(state, out)
        after_member(member, outcome)
    _drop_artifacts(state, out)
    return state


def _next(state: SweepState, dataset: str | None) -> Member | None:
    """The next member that is not settled; a search may add one."""
    while True:
        for member in state.members:
            if member.recipe.sha256() not in state.outcomes:
                return member
        more = next_members(state.sweep, state.tried(), dataset)
        if not more:
            return None
        state.members += more


def _size_rule(folder: Path, sweep: Sweep) -> Callable[[Member], dict[str, Any] | None]:
    """Tells why a member need not be made whatever its figures, as far as headers tell; None if it must."""
    try:
        shapes = folder_shapes(folder)
    except SpqError:
        return lambda _member: None  # each member says what is wrong with the model

    def infeasible(member: Member) -> dict[str, Any] | None:
        try:
            size = artifact_bytes(member.recipe, shapes)
        except RecipeError as error:
            return {"error": {"code": error.code, "message": str(error)}}
        skips = sweep.early_stop.skip_infeasible_estimates
        if skips and is_too_large(sweep.objective, size.low, shapes.source_bytes):
            return {"estimate": {"artifact_bytes": {"expected": round(size.expected)}}}
        return None

    return infeasible


def write_sweep(state: SweepState, out: Path) -> None:
    """Write what is known, in one step."""
    document = state.document()
    new = out / f"{NOTES}.new"
    new.write_text(json.dumps(document, indent=1), encoding="utf-8")
    os.replace(new, out / NOTES)  # noqa: PTH105
    with (out / TABLE).open("w", encoding="utf-8", newline="") as content:
        write_table(document, csv.writer(content))


def member_folder(out: Path, member: Member) -> Path:
    """Where a member's artifact is made."""
    return out / f"{member.number:02d}-{member.recipe.metadata.name}"


def _identity(
    state: SweepState, source: SourceModel, texts: Callable[[str], Text]
) -> dict[str, Any]:
    """Digests of the weights and of the texts: names say little of them."""
    return {
        "weights": weights_digest(source.folder),
        "texts": {name: texts(name).fingerprint for name in state.evaluation.perplexity},
    }


def _take_up(state: SweepState, out: Path, inputs: dict[str, Any]) -> None:
    """Go on where an earlier run of the same sweep stopped; failed members are tried again."""
    state.inputs = inputs
    out.mkdir(parents=True, exist_ok=True)
    try:
        before = json.loads((out / NOTES).read_text(encoding="utf-8"))
        now = json.loads(json.dumps(state.document()))
        other = [part for part in PARTS if before[part] != now[part]]
        done = {
            one["recipe_sha256"]: {"status": SUCCEEDED, "row": one["row"]}
            for one in before["members"]
            if one["status"] == SUCCEEDED
        }
        beside = before["beside"]
    except FileNotFoundError:
        write_sweep(state, out)
        return
    except (ValueError, KeyError, TypeError) as error:
        raise StateMismatchError(
            f"{out / NOTES} cannot be read ({type(error).__name__}); remove it, or name a new folder"
        ) from None
    if other and not done:  # nothing of it is worth keeping
        write_sweep(state, out)
        return
    if other:
        raise StateMismatchError(
            f"{out} holds members of another sweep ({', '.join(PARTS[part] for part in other)}); name a new folder"
        )
    state.beside = beside
    state.outcomes |= done


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
    try:
        if folder.exists() and finished_run(folder, recipe) is None:
            shutil.rmtree(folder)  # of an earlier run whose notes are lost
        result = compress_and_measure(
            source, recipe, folder, texts=texts_for(recipe.looks_at, evaluation.perplexity, texts),
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
    row, beside = compared([one.document() for one in result.rows])
    state.beside |= beside
    more = {
        "seconds": round(result.seconds, 1), "theoretical_rate": result.report.theoretical_rate,
    }  # fmt: skip
    return {"status": SUCCEEDED, "row": row | more}


def _drop_artifacts(state: SweepState, out: Path) -> None:
    """Keep the artifacts that the sweep asks for; figures stay of all."""
    kept = state.verdict.kept(state.sweep, {one.number for one in state.members})
    for member in state.members:
        if member.number not in kept:
            shutil.rmtree(member_folder(out, member), ignore_errors=True)
