"""A sweep as tables: for people in Markdown, for programs as CSV. Free of torch.

Both read the document of a sweep: `beside`, `members` with `number`, `fields`, `status`, `row` and `error`, `front`, `best`
and `tied`, and the sweep itself.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from spq_core.evaluation.certainty import shown, warning
from spq_core.evaluation.tasks.table import headline
from spq_core.sweep.document import Objective
from spq_core.sweep.front import broken_limits

SUCCEEDED, SKIPPED, FAILED, CANCELED = "succeeded", "skipped", "failed", "canceled"
ENDED = frozenset({SUCCEEDED, SKIPPED, FAILED, CANCELED})
STOPPED = {
    "infeasible": "too large by its estimate", "target": "another member reached the target",
    "failures": "too many members failed", "canceled": "the sweep was canceled",
}  # fmt: skip


def write_table(document: Mapping[str, Any], writer: Any) -> None:
    """A line a member: what sets it apart, how it ended, and every figure of it."""
    fields = list(dict.fromkeys(name for one in document["members"] for name in one["fields"]))
    rows = [_flat(one.get("row") or {}) for one in document["members"]]
    figures = list(dict.fromkeys(name for row in rows for name in row))
    writer.writerow(["number", *fields, "status", "stopped", "on_front", "error", *figures])
    for one, row in zip(document["members"], rows, strict=True):
        own = [_plain(one["fields"].get(name, "")) for name in fields]
        error = _plain((one.get("error") or {}).get("message", ""))
        on_front = one["number"] in document["front"]
        stopped = one.get("stopped") or ""
        cells = [row.get(name, "") for name in figures]
        writer.writerow([one["number"], *own, one["status"], stopped, on_front, error, *cells])


def _flat(row: Mapping[str, Any]) -> dict[str, float]:
    """Every figure by a name of its own; those of tasks as <task>.<figure>."""
    figures = dict(row) | {
        f"{task}.{name}": value
        for task, own in (row.get("tasks") or {}).items()
        for name, value in own.items()
    }
    return {name: value for name, value in figures.items() if isinstance(value, int | float)}


def sweep_table(document: Mapping[str, Any]) -> str:
    """The members as a table in Markdown, with the source and plain INT8, the front marked, and the best in words."""
    beside = sorted(document["beside"].items(), key=lambda one: one[0] != "source")
    rows = [row for _, row in beside]
    rows += [one["row"] for one in document["members"] if one.get("row")]
    tasks = list(dict.fromkeys(task for row in rows for task in row.get("tasks") or ()))
    titles = ["", "member", "bytes", "of source", "perplexity", "KL", "top-1", *tasks]
    titles += [*(["retention"] if tasks else []), ""]
    lines = [f"| {' | '.join(titles)} |", f"|{'---|' * len(titles)}"]
    lines += [_line("", name, row, tasks, "") for name, row in beside]
    for one in document["members"]:
        number, name = str(one["number"]), member_name(one["fields"])
        if one["status"] == SUCCEEDED:
            lines.append(_line(number, name, one["row"], tasks, _marks(document, one)))
        else:
            empty = " |" * (len(titles) - 2)
            lines.append(f"| {number} | {name} | {_status(one)}{empty}")
    return "\n".join([*lines, "", _verdict(document), *_measured_on(rows), *_finals(document)])


def member_name(fields: Mapping[str, Any]) -> str:
    """A member in words: its recipe, and what was varied."""
    rest = ", ".join(f"{path} {value}" for path, value in fields.items() if path != "recipe")
    return f"{fields['recipe']}{f': {rest}' if rest else ''}"


def _marks(document: Mapping[str, Any], one: Mapping[str, Any]) -> str:
    objective = Objective.model_validate(document["sweep"]["objective"])
    best = "best" if one["number"] == document["best"] else ""
    if one["number"] in document["tied"]:
        best = "tied with the best"
    on_front = "front" if one["number"] in document["front"] else ""
    broken = [f"breaks {name}" for name in broken_limits(one["row"], objective)]
    return ", ".join(part for part in (on_front, best, *broken) if part)


def _status(member: Mapping[str, Any]) -> str:
    """How a member stands that has no result, and why."""
    why = (member.get("error") or {}).get("message")
    if why is None and member.get("stopped") is not None:
        why = STOPPED[member["stopped"]]
        size = (member.get("estimate") or {}).get("artifact_bytes", {}).get("expected")
        if member["stopped"] == "infeasible" and size is not None:
            why += f" ({size:,.0f} bytes)"
    status: str = member["status"]
    return status if why is None else f"{status}: {why}"


def _verdict(document: Mapping[str, Any]) -> str:
    objective = document["sweep"]["objective"]
    figure = objective["minimize"] or objective["maximize"]
    asked = f"{'lowest' if objective['minimize'] else 'highest'} {figure}{_limits(objective)}"
    members = document["members"]
    done = [one for one in members if one["status"] == SUCCEEDED]
    left = sum(one["status"] not in ENDED for one in members)
    if not done:
        return "No member is done yet." if left else _nothing_done(members)
    if document["best"] is None:
        if not any(isinstance(one["row"].get(figure), int | float) for one in done):
            return f"No member is the {asked}: none has that figure{_no_retention(figure)}."
        return f"No member is the {asked}: none{' so far' if left else ''} keeps the limits."
    best = next(one for one in members if one["number"] == document["best"])
    so_far = " so far" if left else ""
    words = f"{asked[0].upper()}{asked[1:]}{so_far}: member {best['number']} ({member_name(best['fields'])})"
    if document["tied"]:
        words += f", which so much text does not tell from {', '.join(map(str, document['tied']))}"
    return f"{words}. It is the best of {len(done)} on the text that chose it; on another it may be less so."


def _limits(objective: Mapping[str, Any]) -> str:
    limits = ", ".join(
        f"{name} {sign} {limit:g}"
        for name, both in objective["subject_to"].items()
        for sign, limit in (("at least", both["min"]), ("at most", both["max"]))
        if limit is not None
    )
    return f" with {limits}" if limits else ""


def _nothing_done(members: Sequence[Mapping[str, Any]]) -> str:
    if any(one["status"] == FAILED for one in members):
        return "No member came to a result."
    return "No member was made."


def _no_retention(figure: str) -> str:
    return " (the source knows no task better than guessing)" if figure == "retention" else ""


def _measured_on(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The text behind the figures, and whether it is enough."""
    if not rows:
        return []
    first = rows[0]
    words = f"Measured on {first['dataset']}"
    if first.get("windows"):
        words += f", {first['windows']} windows, {first.get('tokens', 0):,} predicted tokens"
    note = warning(first)
    return ["", f"{words}.", *(["", f"**{note}**"] if note else [])]


def _finals(document: Mapping[str, Any]) -> list[str]:
    """The winners, measured once more: each with the source and plain INT8 of the same run."""
    members = [one for one in document["members"] if one.get("final")]
    if not members:
        return []
    titles = [
        "",
        "measured once more",
        "text",
        "perplexity",
        "KL",
        "decoding",
        "INT8's decoding",
        "",
    ]
    lines = ["", f"| {' | '.join(titles)} |", f"|{'---|' * len(titles)}"]
    for one in members:
        final, beside = one["final"], one["final"].get("beside") or {}
        row, source = final.get("row") or {}, beside.get("source") or {}
        cells = [str(one["number"]), member_name(one["fields"]), row.get("dataset", "–")]
        cells += [_figure(row, "perplexity", ".3f"), _figure(row, "kl", ".4f")]
        cells += [_times(row, source), _times(beside.get("int8") or {}, source)]
        why = (final.get("error") or {}).get("message")
        published = (final.get("published") or {}).get("repo_id")
        words = f"published as {published}" if published else final["status"]
        lines.append(f"| {' | '.join([*cells, words if why is None else f'{words}: {why}'])} |")
    return lines


def _times(row: Mapping[str, Any], source: Mapping[str, Any]) -> str:
    """How fast a model writes, beside the source in the same run."""
    own, other = (one.get("decode_tokens_per_second") for one in (row, source))
    return f"{own / other:.2f} of the source" if own and other else "–"


def _line(number: str, name: str, row: Mapping[str, Any], tasks: Sequence[str], words: str) -> str:
    cells = [number, name, f"{row['bytes_on_disk']:,}", f"{row['bytes_ratio']:.1%}"]
    cells += [
        _figure(row, "perplexity", ".3f"),
        _figure(row, "kl", ".4f"),
        _figure(row, "top1", ".1%"),
    ]
    own = row.get("tasks") or {}
    cells += [
        _figure(own[task], headline(own[task]), ".1%") if task in own else "–" for task in tasks
    ]
    cells += [_figure(row, "retention", ".1%")] if tasks else []
    return f"| {' | '.join([*cells, words])} |"


def _figure(row: Mapping[str, Any], name: str, form: str) -> str:
    value, error = row.get(name), row.get(f"{name}_se")
    if value is None:
        return "–"
    if error is None or name == "top1":
        return shown(value, form)
    return f"{shown(value, form)} ± {shown(error, form)}"


def _plain(value: object) -> object:
    """Text that no spreadsheet takes for a formula."""
    text = json.dumps(value) if isinstance(value, dict | list) else value
    if not isinstance(text, str):
        return value
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text
