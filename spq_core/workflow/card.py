"""The model card: what was done, what it cost, how to load it, and what the figures do not say."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

from spq_core.artifact.manifest import CARD_FILE
from spq_core.evaluation.certainty import compared_with_source, shown, warning
from spq_core.evaluation.metrics.registry import METRICS, Metric
from spq_core.evaluation.tasks.table import tasks_table
from spq_core.formats.profiles.profile import Profile
from spq_core.formats.profiles.registry import profile_named
from spq_core.methods.registry import METHODS
from spq_core.models.weight_files import gguf_files

_MARKUP = re.compile(r"[^A-Za-z0-9 _./:;'()%,+\-]")


def write_card(
    folder: Path,
    base_model: str,
    revision: str | None,
    license_id: str | None,
    result: dict[str, Any],
    versions: Mapping[str, str],
) -> None:
    """Write README.md from measured figures; names from outside are stripped of markup.

    Args:
        result: a finished run, as `RunResult.document` gives it. versions: of the packages it ran with.
    """
    recipe = result["compression"]["recipe"]
    profile = profile_named(recipe["profile"])
    metadata: dict[str, Any] = dict(profile.card)
    if "/" in base_model:
        metadata |= {"base_model": base_model, "base_model_relation": "quantized"}
    if license_id:
        metadata["license"] = license_id
    if result["evaluation"] is not None:
        metadata["model-index"] = _model_index(base_model, result)
    body = f"""# {_plain(base_model)}, compressed with `{_plain(recipe["metadata"]["name"])}`

{_plain(recipe["metadata"]["description"])}

Source: {_plain(base_model)}{f", commit `{_plain(revision)}`" if revision else ""}.
{_source_ratio(result)}
{_notes(result)}
{_figures(result)}
{_verdict(result)}
## How to load

{_loading(folder, profile)}
`compression_manifest.json` holds the full recipe, what was done to each matrix, and the sha256 of
every file.

## What was done

{work_done(result["compression"]["modules"])}

Calibration: {_calibration(result)}.

A fresh process loaded the artifact before it was published: its logits differ from the run's own by
{result["load_check"]["logits"]:.1e} of their norm ({result["load_check"]["decoding"]:.1e} with the kernels for decoding).{_in_llama_cpp(profile, result["load_check"])}

```yaml
{yaml.safe_dump(_recipe(recipe), sort_keys=False, width=1000)}```

Made with {", ".join(f"{name} {version}" for name, version in versions.items())}, in \
{result["compression"]["seconds"] / 60:.1f} minutes.

## What these figures do not say

They hold for the text named above. On text of another kind a compressed model can lose more, the more so
the more was removed (neurons, ranks) and the fewer bits are left; measure it on yours. Nothing was measured
about instructions, safety, or languages other than the text's.
"""
    head = yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)
    (folder / CARD_FILE).write_text(f"---\n{head}---\n\n{body}", encoding="utf-8")


def _loading(folder: Path, profile: Profile) -> str:
    """With the names of this artifact's file."""
    files = gguf_files(folder)
    return profile.loading.replace("FILE.gguf", files[0].name) if files else profile.loading


def _in_llama_cpp(profile: Profile, check: Mapping[str, Any]) -> str:
    """What became of it in the program that it is for."""
    if not profile.single_file:
        return ""
    if not check.get("runtime"):
        return " No llama.cpp was installed there: the file was read by this project's own reader alone."
    return (
        f" llama.cpp ({_plain(check['runtime'])}) loaded the file too, cut text as the source does, and gave the same predictions: "
        f"log-probabilities differ by {check['runtime_logits']:.1e} of their norm, as it rounds activations to 8 bits. The figures "
        "above are those of the weights, computed in float32; that rounding comes on top."
    )


def _notes(result: dict[str, Any]) -> str:
    """What of the source was left out or widened."""
    return (
        "".join(f"\n* {_plain(note)}" for note in result["compression"].get("notes") or ()) + "\n"
    )


def _figures(result: dict[str, Any]) -> str:
    """The table and how it was measured, or why there is none."""
    if result["evaluation"] is None:
        return (
            f"**No figures: {_plain(result['missing']['message'])}.** What this artifact lost against its source "
            "is not known; measure it (`spq compare SOURCE ARTIFACT`) before you use it."
        )
    return f"{figures_table(result['rows'])}\n\n{_protocol(result)}"


def figures_table(rows: list[dict[str, Any]]) -> str:
    """The before/after table in Markdown: figures ± their standard errors."""
    known = [metric for metric in METRICS if any(row.get(metric.name) is not None for row in rows)]
    titles = ["model", "bytes on disk", "bytes resident", *(metric.title for metric in known)]
    titles += ["against the source", "prefill tok/s", "decode tok/s"]
    lines = [f"| {' | '.join(titles)} |", f"|{'---|' * len(titles)}"]
    for row in rows:
        cells = [row["name"], f"{row['bytes_on_disk']:,}", _number(row["resident_bytes"], ",")]
        cells += [_figure(row, metric) for metric in known]
        cells.append(compared_with_source(row) or "")
        cells.append(_number(row["prefill_tokens_per_second"], ".0f"))
        cells.append(_number(row["decode_tokens_per_second"], ".1f"))
        lines.append(f"| {' | '.join(cells)} |")
    words = warning(rows[0]) if rows else None
    tasks, kept = tasks_table(rows), _origins(rows)
    more = [*([f"**{words}**"] if words else []), *(part for part in (tasks, kept) if part)]
    return "\n".join([*lines, *(part for block in more for part in ("", block))])


def _origins(rows: list[dict[str, Any]]) -> str:
    """Which figures were not measured by this run."""
    origins = {
        row[
            "name"
        ]: f"{_plain(row['origin']['at'])}{f', {_plain(by)}' if (by := row['origin'].get('by')) else ''}"
        for row in rows
        if row.get("origin")
    }
    named = "; ".join(f"{name} ({origin})" for name, origin in origins.items())
    return (
        f"Quality measured before, with the same text, settings and versions: {named}."
        if named
        else ""
    )


def _figure(row: Mapping[str, Any], metric: Metric) -> str:
    value, error = row.get(metric.name), row.get(f"{metric.name}_se")
    words = _number(value, metric.form)
    return words if value is None or error is None else f"{words} ± {shown(error, metric.form)}"


def measured_on(settings: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    """The text behind a row's perplexity, and how it was cut; `settings` are the measurement's."""
    origin = settings["datasets"][row["dataset"]]["origin"]
    words = (
        f"{row['dataset']} ({_plain(origin)}), {row['tokens']:,} predicted tokens, "
        f"windows of {settings['length']} tokens"
    )
    missing = [f"{task} ({_plain(why)})" for task, why in settings.get("tasks_missing", {}).items()]
    return f"{words}. Tasks without figures: {'; '.join(missing)}" if missing else words


def work_done(modules: Sequence[Mapping[str, Any]]) -> str:
    """One line a stage, from the reports of its matrices."""
    settings = {method.name: method.settings for method in METHODS}
    lines = []
    for stage in dict.fromkeys(one["stage"] for one in modules if one["stage"] in settings):
        own = [one for one in modules if one["stage"] == stage]
        if settings[stage].reports_parts:
            own = list({one["layer"].rpartition(".")[0]: one for one in own}.values())
        done = [one["figures"] for one in own if one["applied"]]
        outcome = settings[stage].outcome
        lines.append(f"* `{stage}`: {len(done)} of {len(own)} {outcome}{_details(done)}.")
    return "\n".join(lines) or "Nothing was changed."


def _details(figures: Sequence[Mapping[str, Any]]) -> str:
    """What the figures of a stage's matrices come to."""
    if not figures:
        return ""
    if all("kept" in one and "neurons" in one for one in figures):
        removed = sum(one["neurons"] - one["kept"] for one in figures)
        return f", {removed:,} of {sum(one['neurons'] for one in figures):,} there"
    if all("bits" in one for one in figures):
        return f", to {fmean(one['bits'] for one in figures):.2f} bits a weight in the mean of matrices"
    if all("rank" in one and "full_rank" in one for one in figures):
        share = fmean(one["rank"] / one["full_rank"] for one in figures)
        return f", with {share:.0%} of the full rank in the mean"
    return ""


def _recipe(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe without what is said above; a block of YAML cannot be left by what it quotes."""
    return {key: value for key, value in recipe.items() if key not in ("metadata", "apiVersion")}


def _protocol(result: dict[str, Any]) -> str:
    settings, row = result["evaluation"]["settings"], result["rows"][-1]
    return (
        f"Perplexity: {measured_on(settings, row)} without overlap, {settings['scoring_dtype']}. "
        "KL is the mean KL(source ‖ model) in nats per token; top-1 the share of tokens whose most "
        f"likely successor is the source's. Speed: batch 1, {settings['device']}, "
        f"{settings['threads']} threads, median of {settings['trials']} trials."
    )


def _source_ratio(result: dict[str, Any]) -> str:
    compression = result["compression"]
    rate = compression.get("theoretical_rate")
    theory = (
        ""
        if rate is None
        else (
            f" Theoretical compression rate {rate:.1%}: the share of 16 bits a weight that is gone from the matrices of "
            "decoder layers, without scales, masks and padding."
        )
    )
    return (
        f"Size: {compression['ratio_to_source']:.1%} of the stored {compression['source_dtype']} "
        f"checkpoint, {compression['ratio_to_fp32']:.1%} of float32.{theory}"
    )


def _verdict(result: dict[str, Any]) -> str:
    if not result["beaten_by_int8"]:
        return ""
    return "\n**Plain INT8 of the same source is both smaller and better than this artifact.**\n"


def _calibration(result: dict[str, Any]) -> str:
    used = result["compression"]["calibration"]
    if used is None:
        return "none needed"
    leak = (
        "; these lines are also evaluation text, as in the paper's code"
        if used["is_evaluation_text"]
        else ""
    )
    mixed = [one for one in used.get("mixed", ()) if one["samples"]]
    others = ", ".join(f"{one['samples']} of {_plain(one['origin'])}" for one in mixed)
    among = f", {others} among them" if others else ""
    lacking = ", ".join(_plain(name) for name in used.get("left_out", ()))
    without = f"; nothing of {lacking}, which could not be had" if lacking else ""
    return (
        f"{used['samples']} {used['form']} of {_plain(used['origin'])}{among}, {used['length']} tokens "
        f"each{leak}{without}"
    )


def _model_index(base_model: str, result: dict[str, Any]) -> list[dict[str, Any]]:
    row = result["rows"][-1]
    metrics = [{"type": "perplexity", "value": round(row["perplexity"], 4)}]
    if row["kl"] is not None:
        metrics.append({"type": "kl_divergence", "value": round(row["kl"], 6)})
    entry = {
        "task": {"type": "text-generation"},
        "dataset": {"name": row["dataset"], "type": row["dataset"]},
        "metrics": metrics,
    }
    return [{"name": f"{base_model.rsplit('/', 1)[-1]}-compressed", "results": [entry]}]


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else shown(value, form)


def _plain(text: str | None) -> str:
    """Text from outside, without anything Markdown or HTML would act on."""
    return _MARKUP.sub("", text or "")
