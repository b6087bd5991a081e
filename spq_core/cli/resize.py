"""`spq resize`: another size of an artifact, without training."""

import json
from dataclasses import asdict
from pathlib import Path

import click
from transformers.utils import logging

from spq_core.cli.console import ConsoleProgress
from spq_core.cli.options import JSON_OPTION
from spq_core.workflow.fresh_process import fresh_process_ready
from spq_core.workflow.resize import resize


@click.command("resize")
@click.argument("artifact", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--bytes-ratio",
    type=click.FloatRange(0.0, 1.0, min_open=True),
    required=True,
    help="Most bytes of the new artifact, as a share of its source's with 16 bits a weight.",
)
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="New folder for the artifact."
)
@click.option(
    "--drop-directions",
    is_flag=True,
    help="Leave out what another resize would need: the new artifact takes less space.",
)
@JSON_OPTION
def resize_command(
    artifact: Path, bytes_ratio: float, out: Path, drop_directions: bool, as_json: bool
) -> None:
    """Make another size of ARTIFACT, which a recipe like `acip` made: no text, no training."""
    logging.disable_progress_bar()
    progress = ConsoleProgress()
    try:
        with fresh_process_ready():
            made = resize(
                artifact, bytes_ratio, out, progress, keeps_directions=not drop_directions
            )
    finally:
        progress.close()
    if as_json:
        click.echo(json.dumps({"artifact": str(out)} | asdict(made), indent=1))
        return
    click.echo(
        f"{out}: {made.artifact_bytes:,} bytes, {made.ratio:.1%} of the source; {made.pairs} matrices are pairs, "
        f"which keep {made.keep:.1%} of the projections' parameters with those that are whole"
    )
    if made.directions_bytes:
        click.echo(
            f"{made.directions_bytes:,} bytes of directions beside it, for another resize; nothing loads them"
        )
    click.echo(f"Not measured yet: spq compare SOURCE {out}")
