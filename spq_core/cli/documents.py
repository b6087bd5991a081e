"""`spq inspect | recipes`: what stands in documents. Free of torch."""

import json
from pathlib import Path

import click
import yaml

from spq_core.artifact.manifest import MANIFEST_FILE, read_manifest, verify_files
from spq_core.cli.completion import complete_recipes
from spq_core.models.weight_files import stored_bytes
from spq_core.recipe.catalog import DEFAULT, catalog, read_request, resolve
from spq_core.workflow.card import work_done

JSON_OPTION = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")


@click.command("inspect")
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--all", "every_matrix", is_flag=True, help="Show every matrix.")
@JSON_OPTION
def inspect_command(folder: Path, every_matrix: bool, as_json: bool) -> None:
    """Show what was done to an artifact, after checking every file's digest."""
    manifest = read_manifest(folder)
    verify_files(folder, manifest)
    on_disk = stored_bytes(folder, ("config.json", MANIFEST_FILE))
    if as_json:
        document = manifest.model_dump(mode="json") | {"bytes_on_disk": on_disk, "verified": True}
        click.echo(json.dumps(document, indent=1))
        return
    source = manifest.source
    click.echo(
        f"source   {source.name} ({source.dtype}, {source.parameters:,} parameters, {source.bytes:,} bytes)"
    )
    click.echo(f"recipe   {manifest.recipe['metadata']['name']} ({manifest.recipe_sha256[:12]})")
    click.echo(
        f"on disk  {on_disk:,} bytes, {on_disk / source.bytes:.1%} of the source; all digests match"
    )
    click.echo(work_done(manifest.modules))
    if not every_matrix:
        click.echo("--all shows every matrix")
        return
    for report in manifest.modules:
        done = "" if report["applied"] else f"left alone: {report['reason']}"
        figures = ", ".join(f"{key} {_short(value)}" for key, value in report["figures"].items())
        click.echo(f"{report['stage']:9} {report['layer']:40} {figures} {done}".rstrip())


@click.command("recipes")
@click.argument("name", required=False, shell_complete=complete_recipes)
@JSON_OPTION
def recipes_command(name: str | None, as_json: bool) -> None:
    """List the catalog, or show one recipe whole: NAME is one of the catalog, or a file, which is checked."""
    chosen = {name: resolve(read_request(name))} if name else dict(catalog())
    if as_json:
        documents = {key: recipe.document() for key, recipe in chosen.items()}
        click.echo(json.dumps(documents[name] if name else documents, indent=1))
        return
    for key, recipe in chosen.items():
        default = "The default. " if key == DEFAULT else ""
        click.echo(key)
        click.echo(
            click.wrap_text(
                f"{default}{recipe.metadata.description}",
                96,
                initial_indent="  ",
                subsequent_indent="  ",
            )
        )
        if name:
            click.echo(yaml.safe_dump(recipe.document(), sort_keys=False))


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
