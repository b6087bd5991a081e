"""Options that several commands share, and the text that they name."""

import os
from dataclasses import replace
from pathlib import Path

import click

from spq_core.data.tasks import TaskData, find_task
from spq_core.data.texts import BUILT_IN, Text, builtin_text, find_text
from spq_core.errors import DatasetError, SpqError
from spq_core.evaluation.known import Shelf, drop_oldest
from spq_core.evaluation.measure import task_files
from spq_core.evaluation.settings import EvaluationSettings
from spq_core.hub.datasets import fetch_text
from spq_core.hub.errors import HubUnavailableError
from spq_core.hub.fetch import FetchLimits, fetch_model, require_named
from spq_core.hub.own_token import own_hub
from spq_core.hub.task_data import fetch_task
from spq_core.hub.tasks import is_on_hub
from spq_core.models.clean_copy import SourceModel
from spq_core.models.reading import AS_IT_IS, GGUF, Reading

DEVICE_OPTION = click.option(
    "--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N."
)
THROUGHPUT_OPTION = click.option(
    "--throughput/--no-throughput",
    default=True,
    help="Time prefill and decoding; with few windows that takes longer than the rest.",
)
JSON_OPTION = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
TASKS_OPTION = click.option(
    "--tasks",
    help="Also put tasks of lm-evaluation-harness, separated by commas: truthfulqa_mc1,gsm8k. Their questions come from "
    "--data-dir (<task>.jsonl), or from the Hub.",
)
TASK_LIMIT_OPTION = click.option(
    "--task-limit", type=click.IntRange(1), help="Questions of each task; all by default."
)
REVISION_OPTION = click.option(
    "--revision", default="main", show_default=True, help="Branch, tag or commit of a Hub model."
)
INSTEAD_OPTION = click.option(
    "--dataset",
    help="Text to calibrate and evaluate on instead of the recipe's: wikitext2, c4, builtin, or a name in --data-dir.",
)
LENGTH_OPTION = click.option(
    "--length",
    type=click.IntRange(16, 32768),
    help="Tokens per evaluation window; 1024, or the model's context if shorter.",
)
DATA_OPTION = click.option(
    "--data-dir",
    envvar="SPQ_DATA_DIR",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder with <name>-test.txt and <name>-valid.txt for datasets by name.",
)


REUSE_OPTION = click.option(
    "--reuse/--measure-anew",
    default=True,
    help="Take figures of the source and of plain INT8 that an earlier run measured on the same text, with the same settings "
    "and versions (kept in SPQ_FIGURES_DIR, by default ~/.cache/spq/figures). Speeds are always measured anew.",
)
LARGEST_CACHE = 20 << 30


def figures_shelf(by: str) -> Shelf:
    """Where figures are kept between runs; the oldest go when they take too much.

    Args:
        by: whom this run's figures are measured for.
    """
    named = os.environ.get("SPQ_FIGURES_DIR")
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folder = Path(named or f"{caches}/spq/figures").expanduser()
    drop_oldest(folder, LARGEST_CACHE)
    return Shelf(folder, folder, by)


def task_names(tasks: str | None) -> tuple[str, ...]:
    """The names in an option."""
    return tuple(name.strip() for name in (tasks or "").split(",") if name.strip())


def named_text(name: str, data_dir: Path | None, scratch: Path) -> Text:
    """The named text from the data folder, else from the Hub, else the built-in one."""
    try:
        return _local_or_fetched(name, data_dir, scratch)
    except HubUnavailableError as error:
        text = builtin_text()
        click.echo(f"{error}: using {text.origin} instead of {name}", err=True)
        return text


def text_to_mix_in(name: str, data_dir: Path | None, scratch: Path) -> Text:
    """The named text from the data folder, else from the Hub.

    Raises:
        SpqError: it cannot be had; that is told, too.
    """
    try:
        return _local_or_fetched(name, data_dir, scratch)
    except SpqError as error:
        click.echo(f"calibration goes without {name}: {error}", err=True)
        raise


def _local_or_fetched(name: str, data_dir: Path | None, scratch: Path) -> Text:
    if data_dir is not None or name in BUILT_IN:
        return find_text(name, data_dir)
    with own_hub() as api:
        fetch_text(api, name, scratch)
    return find_text(name, scratch)


def found_tasks(
    settings: EvaluationSettings, data_dir: Path | None, scratch: Path
) -> dict[str, TaskData]:
    """Files of the tasks that are asked for: from the data folder, else from the Hub.

    Raises:
        DatasetError: neither has a task's questions.
        EvaluationError: see `task_files`.
    """
    local = [] if data_dir is None else [data_dir]
    fetched = scratch / "questions"
    for name in settings.tasks:
        try:
            find_task(name, [*local, fetched])
        except DatasetError:
            if not is_on_hub(name):
                raise
            fetched.mkdir(exist_ok=True)
            with own_hub() as api:
                origin = fetch_task(api, name, fetched)
            click.echo(f"questions of {name} are those of {origin}", err=True)
    return task_files(settings, [*local, fetched])


def local_source(
    model: str, revision: str, scratch: Path, reading: Reading = AS_IT_IS
) -> SourceModel:
    """The model folder or GGUF file that a command line names; one of the Hub is fetched into `scratch`."""
    path = Path(model)
    if path.is_file() and path.name.endswith(GGUF):
        name = path.name.removesuffix(GGUF)
        return SourceModel(folder=path.parent, name=name, reading=replace(reading, file=path.name))
    if path.is_dir():
        return SourceModel(
            folder=path / reading.subfolder, name=path.resolve().name, reading=reading
        )
    if "/" not in model:
        click.echo(f"there is no folder {model!r} here: treating it as a Hub model", err=True)
    require_named(model)
    with own_hub() as api:
        fetched = fetch_model(
            api, model, revision, scratch / "source", limits=FetchLimits(), reading=reading
        )
    return SourceModel(folder=fetched.folder, name=model, revision=fetched.commit, reading=reading)
