"""The console command `spq`: one table of subcommands, each imported only when it is called."""

import importlib
import os
import sys
from typing import Any

import click
from pydantic import ValidationError
from sqlalchemy.exc import SQLAlchemyError

from spq_core.errors import SpqError
from worker.children.process import PASSIVE_THREADS, SPINNING_THREADS

COMMANDS = {
    "compress": (
        "spq_core.cli.compress:compress_command",
        "Compress a model folder or Hub model, without a service.",
    ),
    "evaluate": ("spq_core.cli.measure:evaluate_command", "Measure any model folder."),
    "compare": ("spq_core.cli.measure:compare_command", "Measure models side by side."),
    "sweep": ("spq_core.cli.sweep:sweep_command", "Try many recipes on a model, and compare them."),
    "estimate": (
        "spq_core.cli.estimate:estimate_command",
        "Tell what a job would take, without fetching weights.",
    ),
    "inspect": ("spq_core.cli.documents:inspect_command", "Show what is in an artifact."),
    "recipes": ("spq_core.cli.documents:recipes_command", "List the recipe catalog."),
    "serve": (
        "worker.standalone.serve:serve_command",
        "API, dashboard and worker on this machine, on SQLite.",
    ),
    "worker": ("worker.command:worker_command", "Run a Celery worker of a deployment."),
    "api": ("app.cli:api_command", "Run the HTTP API of a deployment."),
    "migrate": ("app.cli:migrate_command", "Bring the database to the newest schema."),
    "keys": ("app.cli:keys_group", "Create, list and revoke API keys."),
    "tenants": ("app.cli:tenants_group", "Set what tenants may have."),
    "sweeps": (
        "app.client.sweeps:sweeps_group",
        "Compare many recipes through the service.",
    ),
    "jobs": ("app.client.cli:jobs_group", "Submit and follow jobs over HTTP."),
    "open": ("app.client.browser:open_command", "Open the dashboard, signed in."),
}


ALONE = [["compress"], ["evaluate"], ["compare"], ["sweep"]]
"""What people run on a machine that does nothing else meanwhile."""


class LazyGroup(click.Group):
    """Imports a subcommand's module when it is used, so that `spq recipes` never loads torch."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All subcommands, in the table's order."""
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return one subcommand."""
        del ctx
        if cmd_name not in COMMANDS:
            return None
        module, attribute = COMMANDS[cmd_name][0].split(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the subcommands from the table, without importing any."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=LazyGroup)
@click.version_option(package_name="spq")
def spq() -> None:
    """Compress language models and say honestly what that cost."""


def main() -> None:
    """Entry point; expected errors end with one line and status 1."""
    if "OMP_WAIT_POLICY" not in os.environ:  # read when torch loads
        ours = PASSIVE_THREADS | (SPINNING_THREADS if sys.argv[1:2] in ALONE else {})
        os.environ.update(ours)
    try:
        spq()
    except SpqError as error:
        _fail(error.code, str(error))
    except ValidationError as error:
        _fail("invalid_settings", "; ".join(_setting(problem) for problem in error.errors()))
    except (OSError, SQLAlchemyError) as error:
        _fail(type(error).__name__, str(error).splitlines()[0])
    except ModuleNotFoundError as error:
        click.echo(
            f"error: this command needs the package {error.name!r}; install it with pip install -e '.[worker]' in the checkout",
            err=True,
        )
        sys.exit(1)


def _setting(problem: Any) -> str:
    """A missing or malformed setting, by the name of its variable and without its value."""
    name = "_".join(str(part) for part in problem["loc"]).upper()
    return f"SPQ_{name.removeprefix('SPQ_')}: {problem['msg']}"


def _fail(code: str, message: str) -> None:
    click.echo(f"error: {code}: {message}", err=True)
    sys.exit(1)


if __name__ == "__main__":
    main()
