"""A sweep as tables: for people in Markdown, for programs as CSV. Free of torch.

Both read the document of a sweep: `beside`, `members` with `number`, `fields`, `status`, `row` and `error`, `front`, `best`
and `tied`, and the sweep itself.
"""

import json
from collections.abc import Mapping
from typing import Any

from spq_core.evaluation.certainty import warning

SUCCEEDED = "succeeded"


def write_table(document: Mapping[str, Any], writer: Any) -> None:
    """A line a member: what sets it apart, how it ended, and every figure of it."""
    fields = list(dict.fromkeys(name for one in document["members"] for name in one["fields"]))
    rows = [one.get("row") or {} for one in document["members"]]
    figures = list(
        dict.fromkeys(
            name for row in rows for name, value in row.items() if isinstance(value, int | float)
        )
    )
    writer.writerow(["number", *fields, "status", "stopped", "on_front", "error", *figures])
    for one, row in zip(document["members"], rows, strict=True):
        own = [one["fields"].get(name, "") for name in fields]
        error = (one.get("error") or {}).get("message", "")
        on_front = one["number"] in document["front"]
        cells = [row.get(name, "") for name in figures]
        own, error = [_plain(value) for value in own], _plain(error)
        stopped = one.get("stopped") or ""
        writer.writerow([one["number"], *own, one["status"], stopped, on_front, error, *cells])


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
        if one["status"] == SUCCEEDED:
            lines.append(_line(str(one["number"]), member_name(one["fields"]), one["row"], words))
        else:
            why = (one.get("error") or {}).get("message") or _why(one)
            lines.append(
                f"| {one['number']} | {member_name(one['fields'])} | {one['status']}: {why} | | | | | |"
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
    words = (
        f"{asked[0].upper()}{asked[1:]}: member {best['number']} ({member_name(best['fields'])})"
    )
    if document["tied"]:
        words += f", which so much text does not tell from {', '.join(map(str, document['tied']))}"
    done = [one for one in document["members"] if one["status"] == SUCCEEDED]
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


def member_name(fields: Mapping[str, Any]) -> str:
    """A member in words: its recipe, and what was varied."""
    rest = ", ".join(f"{path} {value}" for path, value in fields.items() if path != "recipe")
    return f"{fields['recipe']}{f': {rest}' if rest else ''}"


def _plain(value: object) -> object:
    """Text that no spreadsheet takes for a formula."""
    text = (
        value
        if isinstance(value, str)
        else json.dumps(value)
        if isinstance(value, dict | list)
        else None
    )
    if text is None:
        return value
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


STOPPED = {
    "infeasible": "too large by its estimate", "target": "another member reached the target",
    "failures": "too many members failed", "canceled": "the sweep was canceled",
}  # fmt: skip


def _why(member: Mapping[str, Any]) -> str:
    stopped = member.get("stopped")
    return "not done yet" if stopped is None else STOPPED[stopped]
