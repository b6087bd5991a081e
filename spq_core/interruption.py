"""What a run on the command line leaves when it is stopped, and what it then says."""

import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from spq_core.finished import note_path
from spq_core.machine import machine_failure
from spq_core.resume import state_folder

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
    """Let SIGTERM end the block as Ctrl-C does: with a word, and without leftovers."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(_signal: int, _frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def naming_resume(out: Path) -> Iterator[None]:
    """Tell whoever interrupts a run how to go on with it; remove what nobody can go on from."""
    try:
        yield
    except Exception as error:
        failure = machine_failure(error)
        if failure is None:
            raise
        left = note_path(out).is_file() or state_folder(out).is_dir()
        go_on = f"; {AGAIN} goes on from there" if left else ""
        raise click.ClickException(f"{failure.code}: {failure.message}{go_on}") from None
    except KeyboardInterrupt:
        if note_path(out).is_file():
            told = f"interrupted; the artifact in {out} is complete, and {AGAIN} checks and measures it"
        elif out.is_dir():
            told = f"interrupted; {out} is complete, `spq compare` measures it"
        elif state_folder(out).is_dir():
            told = f"interrupted; {AGAIN} goes on from the last finished layer"
        else:
            for kind in UNFINISHED:
                shutil.rmtree(out.with_name(f"{out.name}.{kind}"), ignore_errors=True)
            told = "interrupted; nothing was finished yet"
        raise click.ClickException(told) from None
