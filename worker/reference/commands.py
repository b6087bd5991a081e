"""The page of commands."""

import inspect
from collections.abc import Iterator

import click

from worker.cli import spq

WIDTH = 120


def page() -> Iterator[str]:
    """Its lines."""
    yield "# Commands"
    yield ""
    yield "What `spq … --help` says, in one place."
    context = click.Context(
        spq, info_name="spq", terminal_width=WIDTH, max_content_width=WIDTH, **spq.context_settings
    )
    yield from _told(spq, context, depth=2)


def _told(command: click.Command, context: click.Context, *, depth: int) -> Iterator[str]:
    yield ""
    yield f"{'#' * depth} {context.command_path}"
    yield ""
    yield "```text"
    yield inspect.cleandoc(command.get_help(context))
    yield "```"
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            if child is not None and not child.hidden:
                below = click.Context(
                    child,
                    parent=context,
                    info_name=name,
                    terminal_width=WIDTH,
                    **child.context_settings,
                )
                yield from _told(child, below, depth=min(depth + 1, 4))
