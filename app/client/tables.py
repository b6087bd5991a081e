"""Answers of the service as people read them in a terminal."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from spq_core.evaluation.certainty import compared_with_source, shown, warning

UNITS = ("B", "kB", "MB", "GB", "TB")
VERDICTS = {
    "better": "better than plain INT8", "worse": "plain INT8 is better", "mixed": "not both smaller and nearer than plain INT8", "unclear": "too little text to tell it from plain INT8",
    "same": "no better than plain INT8",
}  # fmt: skip
SHORT_ID = 8


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as they need; figures go to the right."""
    if not rows:
        return ""
    cells = [list(titles), *(list(row) for row in rows)]
    widths = [max(len(row[at]) for row in cells) for at in range(len(titles))]
    right = [all(_is_figure(row[at]) for row in rows) for at in range(len(titles))]
    lines = [
        "  ".join(
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in cells
    ]
    return "\n".join(lines)


def _is_figure(cell: str) -> bool:
    return cell[:1].isdigit() or cell in {"–", ""} or (cell[:1] in "+-" and cell[1:2].isdigit())


def in_bytes(value: float | None) -> str:
    """A size with three digits that count."""
    if value is None:
        return "–"
    at, size = 0, float(value)
    while size >= 999.5 and at < len(UNITS) - 1:  # noqa: PLR2004 - where three digits end
        size, at = size / 1000, at + 1
    return f"{size:.3g} {UNITS[at]}"


def duration(seconds: float) -> str:
    """Seconds, minutes or hours."""
    whole = max(0, round(seconds))
    if whole < 60:  # noqa: PLR2004 - a minute
        return f"{whole} s"
    if whole < 3600:  # noqa: PLR2004 - an hour
        return f"{whole // 60} min"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def since(iso: str | None, until: str | None = None) -> float:
    """Seconds between two instants, or until now."""
    if iso is None:
        return 0.0
    end = datetime.now(UTC) if until is None else datetime.fromisoformat(until)
    return (end - datetime.fromisoformat(iso)).total_seconds()


def happening(row: Mapping[str, Any]) -> str:
    """What happens with a job, in a line.

    Args:
        row: of `GET /jobs?view=row`.
    """
    if row["status"] == "queued":
        if row["last_attempt"]:
            last = row["last_attempt"]
            return f"attempt {last['number']} of {row['max_attempts']} ended: {last['reason']}; to be tried again"
        return place(row["queue"]) if row["queue"] else "waits for a worker"
    if row["status"] in {"running", "canceling"}:
        where = row["stage"] or "starting"
        if row["stage_number"]:
            where = f"stage {row['stage_number']} of {row['stage_count']}: {where}"
        return f"{where}{left(row['estimated_finish_at'])}"
    if row["error"]:
        return f"{row['error']['code']}: {row['error']['message']}"
    if row["missing"]:
        return f"no figures: {row['missing']}"
    return VERDICTS[row["verdict"]["word"]] if row["verdict"] else ""


def left(finish: str | None) -> str:
    """When it will be done, if somebody knows."""
    return "" if finish is None else f"; about {duration(-since(finish))} left"


def place(queue: Mapping[str, Any]) -> str:
    """Of a queued job."""
    if not queue["workers"]:
        return "waits: no worker is there (spq workers)"
    ahead = queue["position"] - 1
    begins = queue["estimated_start_at"]
    begin = "" if begins is None else f"; begins in about {duration(-since(begins))}"
    return f"waits: {f'{ahead} ahead' if ahead else 'next'}, {queue['running']} running on {queue['workers']} workers{begin}"


def jobs_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Jobs in lines."""
    titles = ("job", "status", "age", "model", "recipe", "size", "KL", "what happens")
    lines = []
    for row in rows:
        figures = row["figures"] or {}
        size = f"{figures['bytes_ratio']:.0%}" if figures else "–"
        kl = figures.get("kl")
        done = (
            f"{row['overall_fraction']:.0%}"
            if row["status"] == "running" and row["overall_fraction"]
            else ""
        )
        lines.append(
            (
                row["id"][-SHORT_ID:], f"{row['status']} {done}".strip(), duration(since(row["created_at"])),
                row["model"], row["recipe"], size, "–" if kl is None else shown(kl, ".4f"), happening(row)[:100],
            )
        )  # fmt: skip
    return table(titles, lines)


def figures_lines(
    rows: Sequence[Mapping[str, Any]], sources: Sequence[Mapping[str, Any]] | None = None
) -> str:
    """Models side by side.

    Args:
        sources: the source of each, in the same run; all of one run, whose source comes first, if left out.
    """
    beside = [rows[0]] * len(rows) if sources is None else sources
    titles = (
        "",
        "bytes",
        "of source",
        "in memory",
        "perplexity",
        "to source",
        "KL",
        "top-1",
        "decoding",
    )
    lines = [
        (
            str(row["name"]), in_bytes(row["bytes_on_disk"]), f"{row['bytes_on_disk'] / source['bytes_on_disk']:.1%}",
            in_bytes(row.get("resident_bytes")), _figure(row, "perplexity", ".3f"), compared_with_source(row) or "–",
            _figure(row, "kl", ".4f"), "–" if row.get("top1") is None else f"{row['top1']:.1%}", _times(row, source),
        )
        for row, source in zip(rows, beside, strict=True)
    ]  # fmt: skip
    first = rows[0]
    note = warning(first)
    text = f"{first['dataset']}, {first.get('windows', '?')} windows, {first.get('tokens') or 0:,} predicted tokens; ± is one standard error"
    return "\n".join([table(titles, lines), "", text, *([note] if note else [])])


def _figure(row: Mapping[str, Any], name: str, form: str) -> str:
    value, error = row.get(name), row.get(f"{name}_se")
    if value is None:
        return "–"
    return shown(value, form) if error is None else f"{shown(value, form)} ± {shown(error, form)}"


def _times(row: Mapping[str, Any], source: Mapping[str, Any]) -> str:
    own, other = (one.get("decode_tokens_per_second") for one in (row, source))
    return f"{own / other:.2f}x" if own and other else "–"


def job_page(job: Mapping[str, Any]) -> str:
    """A job on a page."""
    lines = [
        f"{job['id']}  {job['status']}",
        f"{job['model']} · {job['recipe']['metadata']['name']} · attempt {job['attempt']} of {job['max_attempts']}",
        *_standing(job),
        *_found(job["result"] or {}),
    ]
    if job["verdict"]:
        lines += ["", f"{VERDICTS[job['verdict']['word']]}. {job['verdict']['sentence']}"]
    return "\n".join([*lines, "", *stage_lines(job["stages"])])


def _standing(job: Mapping[str, Any]) -> list[str]:
    """Whatever there is to say of how it stands."""
    last, error = job["last_attempt"], job["error"]
    labels = ", ".join(f"{name}={value}" for name, value in job["labels"].items())
    found = (
        [f"took {duration(since(job['started_at'], job['finished_at']))}"]
        if job["started_at"]
        else []
    )
    found += [f"labels: {labels}"] if labels else []
    found += [place(job["queue"])] if job["queue"] else []
    if last and job["status"] == "queued":
        found.append(f"attempt {last['number']} ended: {last['reason']}")
    return found + ([f"{error['code']}: {error['message']}"] if error else [])


def _found(result: Mapping[str, Any]) -> list[str]:
    """Figures and gates, or why there are none."""
    lines = []
    if result.get("missing"):
        lines.append(f"no figures: {result['missing']['message']}; the artifact is complete")
    if result.get("rows"):
        lines += ["", figures_lines(result["rows"])]
    for gate in result.get("gates") or []:
        kept = {True: "kept", False: "BROKEN", None: "not measured"}[gate["passed"]]
        sign = "at most" if gate["kind"] == "max" else "at least"
        lines.append(
            f"gate: {gate['figure']} {sign} {gate['limit']:g} on {gate['dataset'] or '–'}: {kept} ({gate['measured']})"
        )
    return lines


def stage_lines(stages: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line a stage."""
    marks = {"planned": "○", "running": "◐", "done": "●", "skipped": "–", "stopped": "✕"}
    return [
        f"{marks[one['state']]} {one['title']}"
        + (
            f"  {duration(since(one['started_at'], one['ended_at']))}"
            if one["state"] == "done" and one["started_at"]
            else ""
        )
        for one in stages
    ]
