"""What a run on the command line leaves when it is stopped, and what it then says."""

import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from spq_core.machine import machine_failure
from spq_core.streaming.run_state import STATE_FILE, state_folder
from spq_core.workflow.finished import note_path

AGAIN = "the same command with --resume"
UNFINISHED = ("partial", "spool")
"""What a run writes beside its output and cannot use without a state."""


@contextmanager
def scratch_folder(out: Path) -> Iterator[Path]:
    """A folder beside `out` that ends with the block.

    Its name is fixed, so that the next run finds what a killed one left. To be entered with the output's lock.
    """
    folder = out.absolute().with_name(f"{out.name}.scratch")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def stopped_like_by_hand() -> Iterator[None]:
    """Let SIGTERM, and a terminal that closes, end the block as Ctrl-C does: without leftovers."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(_signal: int, _frame: Any) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def naming_resume(out: Path, *, resume: bool) -> Iterator[None]:
    """Tell whoever interrupts a run how to go on with it; remove what nobody can go on from."""
    others = None if resume else _written_at(state_folder(out) / STATE_FILE)

    def has_state() -> bool:
        now = _written_at(state_folder(out) / STATE_FILE)
        return now is not None and now != others  # an earlier run's is not ours to promise

    try:
        yield
    except Exception as error:
        failure = machine_failure(error)
        if failure is None:
            raise
        left = note_path(out).is_file() or has_state()
        go_on = f"; {AGAIN} goes on from there" if left else ""
        raise click.ClickException(f"{failure.code}: {failure.message}{go_on}") from None
    except KeyboardInterrupt:
        if not (note_path(out).is_file() or out.is_dir() or has_state() or others):
            for kind in UNFINISHED:
                shutil.rmtree(out.with_name(f"{out.name}.{kind}"), ignore_errors=True)
        raise click.ClickException(_told(out, resumable=has_state())) from None


def _told(out: Path, *, resumable: bool) -> str:
    """What an interrupted run has come to."""
    if note_path(out).is_file():
        return f"interrupted; the artifact in {out} is complete, and {AGAIN} checks and measures it"
    if out.is_dir():
        return f"interrupted; {out} is complete, `spq compare` measures it"
    if resumable:
        return f"interrupted; {AGAIN} goes on from the last finished layer"
    return "interrupted; nothing was finished yet"


def _written_at(file: Path) -> int | None:
    """When a file was last written; None if there is none."""
    try:
        return file.stat().st_mtime_ns
    except OSError:
        return None
