"""`spq estimate`: what a job would take. Free of torch."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from spq_core.cli.completion import complete_recipes
from spq_core.cli.reading import reading_options
from spq_core.estimate.estimate import Estimate, estimate, folder_shapes, headers_shapes
from spq_core.evaluation.settings import EvaluationSettings
from spq_core.hub.client import require_reachable
from spq_core.hub.fetch import require_named
from spq_core.hub.headers import fetch_headers
from spq_core.hub.own_token import own_hub
from spq_core.models.reading import GGUF, Reading, require_headers
from spq_core.models.shapes import ModelShapes
from spq_core.recipe.catalog import catalog, read_request, resolve


@click.command("estimate")
@click.argument("model")
@click.option(
    "--recipe",
    "recipes",
    shell_complete=complete_recipes,
    multiple=True,
    help="Catalog name, or a YAML/JSON file; may be given more than once. All of the catalog by default.",
)
@click.option(
    "--revision", default="main", show_default=True, help="Branch, tag or commit of a Hub model."
)
@reading_options
@click.option(
    "--windows", type=click.IntRange(1), help="Count an evaluation on this many windows, too."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def estimate_command(
    model: str,
    recipes: tuple[str, ...],
    revision: str,
    reading: Reading,
    windows: int | None,
    as_json: bool,
) -> None:
    """Tell what compressing MODEL (a local folder or a Hub id) would take, from its headers alone."""
    chosen = [resolve(read_request(name)) for name in recipes or catalog()]
    shapes = _shapes(model, revision, reading)
    evaluation = None if windows is None else EvaluationSettings(limit=windows)
    found = [estimate(recipe, shapes, evaluation) for recipe in chosen]
    if as_json:
        document: dict[str, Any] = {"model": model, "estimates": [one.document() for one in found]}
        click.echo(json.dumps(document, indent=1))
        return
    click.echo(f"{model}: {shapes.source_bytes:,} bytes, {shapes.elements:,} weights in matrices")
    click.echo(
        f"{'recipe':18} {'profile':9} {'artifact, MB':>24} {'loaded, MB':>11} {'peak RAM, MB':>13} "
        f"{'disk, MB':>9} {'minutes on two cores':>22}"
    )
    for one in found:
        click.echo(_line(one))


def _line(one: Estimate) -> str:
    size, minutes = one.artifact_bytes, one.seconds.times(1 / 60)
    spread = "" if size.low == size.high else f" ({size.low / 1e6:,.0f}–{size.high / 1e6:,.0f})"
    artifact = f"{size.expected / 1e6:,.0f}{spread}"
    time = f"{minutes.expected:,.1f} ({minutes.low:,.1f}–{minutes.high:,.1f})"
    return (
        f"{one.recipe:18} {one.profile:9} {artifact:>24} {one.resident_bytes / 1e6:>11,.0f} "
        f"{one.peak_bytes / 1e6:>13,.0f} {one.scratch_bytes / 1e6:>9,.0f} {time:>22}"
    )


def _shapes(model: str, revision: str, reading: Reading) -> ModelShapes:
    if Path(model).is_file() and model.endswith(GGUF):
        require_headers(replace(reading, file=Path(model).name))
    if Path(model).is_dir():
        return folder_shapes(Path(model) / reading.subfolder, reading)
    require_named(model)
    with own_hub() as api:
        require_reachable(api)
        return headers_shapes(fetch_headers(api, model, revision, reading))
