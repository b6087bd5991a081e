"""The console command `spq`: one table of subcommands, each imported only when it is called."""

import importlib
import json
import os
import signal
import sys
from difflib import get_close_matches
from typing import Any

import click

from spq_core.errors import SpqError
from worker.threads import PASSIVE_THREADS, SPINNING_THREADS

COMMANDS = {
    "compress": (
        "spq_core.cli.compress:compress_command",
        "Compress a model folder or Hub model, without a service.",
    ),
    "resize": (
        "spq_core.cli.resize:resize_command",
        "Make another size of an artifact that keeps all its directions.",
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
    "wait": ("app.client.top:wait_command", "Wait for jobs; the exit code says how they ended."),
    "open": ("app.client.browser:open_command", "Open the dashboard, signed in."),
    "login": ("app.client.top:login_command", "Keep an API key for a service."),
    "whoami": ("app.client.top:whoami_command", "Tell whom your API key speaks for."),
    "workers": ("app.client.top:workers_command", "List a service's workers."),
    "models": ("app.client.top:models_command", "List a service's own models."),
    "datasets": ("app.client.top:datasets_command", "List the texts a service knows."),
    "completion": ("app.client.top:completion_command", "Print completions for a shell."),
}


ALONE = [["compress"], ["resize"], ["evaluate"], ["compare"], ["sweep"]]
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

    def invoke(self, ctx: click.Context) -> Any:
        """Run a subcommand; one that says nothing of its own when it is interrupted ends as shells expect."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            sys.exit(128 + signal.SIGINT)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the subcommands from the table, without importing any."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the subcommand, or say which one may have been meant."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            close = get_close_matches(args[0], COMMANDS, n=3)
            meant = f" Did you mean {' or '.join(close)}?" if close else ""
            ctx.fail(f"No such command {args[0]!r}.{meant}")
        return super().resolve_command(ctx, args)


@click.group(
    cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "show_default": True}
)
@click.version_option(package_name="spq")
def spq() -> None:
    """Compress language models and say honestly what that cost.

    \b
    spq compress ./model --recipe balanced --out ./small --windows 16     without a service
    spq serve --models ~/models                                           a service on this machine
    spq jobs submit my-model --local --watch                              a job of it

    \b
    exit codes: 0 done, 1 failed, 2 a wrong command, 3 canceled, 4 no valid key, 5 the service refused,
    6 it does not answer, 7 no member of a sweep keeps the limits, 124 waited too long, 130 interrupted
    """


def main() -> None:
    """Entry point; expected errors end with one line and status 1."""
    if "OMP_WAIT_POLICY" not in os.environ:  # read when torch loads
        ours = PASSIVE_THREADS | (SPINNING_THREADS if sys.argv[1:2] in ALONE else {})
        os.environ.update(ours)
    try:
        spq(prog_name="spq")
    except SpqError as error:
        _fail(error.code, str(error), getattr(error, "exit_code", 1))
    except ModuleNotFoundError as error:
        click.echo(
            f"error: this command needs the package {error.name!r}; install it with pip install -e '.[worker]' in the checkout",
            err=True,
        )
        sys.exit(1)
    except OSError as error:
        _fail(type(error).__name__, str(error).splitlines()[0])
    except Exception as error:
        told = _known(error)
        if told is None:
            raise
        _fail(*told)


def _known(error: Exception) -> tuple[str, str] | None:
    """Errors of libraries that are only imported where something needs them."""
    if isinstance(error, _class_of("pydantic", "ValidationError")):
        problems = error.errors()  # type: ignore[attr-defined]
        return "invalid_settings", "; ".join(_setting(problem) for problem in problems)
    if isinstance(error, _class_of("sqlalchemy.exc", "SQLAlchemyError")):
        return type(error).__name__, str(error).splitlines()[0]
    return None


def _class_of(module: str, name: str) -> tuple[type[Exception], ...]:
    """A class of a module that is there already, or none."""
    found = getattr(sys.modules.get(module), name, None)
    return () if found is None else (found,)


def _setting(problem: Any) -> str:
    """A missing or malformed setting, by the name of its variable and without its value."""
    name = "_".join(str(part) for part in problem["loc"]).upper()
    return f"SPQ_{name.removeprefix('SPQ_')}: {problem['msg']}"


def _fail(code: str, message: str, exit_code: int = 1) -> None:
    """One line for people; with --json a document for programs."""
    as_json = "--json" in sys.argv
    told = (
        json.dumps({"error": {"code": code, "message": message}})
        if as_json
        else f"error: {code}: {message}"
    )
    click.echo(told, err=True)
    sys.exit(exit_code)


if __name__ == "__main__":
    main()
