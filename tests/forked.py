"""Our own programs, in processes forked from one that has imported what they import.

A new interpreter spends five seconds on importing torch and transformers before it does anything. Tests that are not about
that get a process with a memory, an environment, pipes and an exit code of its own without waiting for it.
"""

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

PRELOADED = ["spq_core.cli.compress", "spq_core.cli.measure", "spq_core.models.clean_copy"]
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(PRELOADED)


def call(function: Callable[..., None], *arguments: Any, timeout: float = 300.0) -> int:
    """Call a function of a module in a process of its own; return its exit code, negative if a signal ended it."""
    process = _FORKS.Process(target=function, args=arguments)
    process.start()
    process.join(timeout)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise subprocess.TimeoutExpired(str(function), timeout)
    return process.exitcode


def run(
    command: Sequence[str], *, check: bool = False, timeout: float = 300.0, **_pipes: Any
) -> "subprocess.CompletedProcess[str]":
    """`subprocess.run` of `python -m <program> …`, with its output as text."""
    executable, flag, program, *arguments = command
    assert (executable, flag) == (sys.executable, "-m"), command
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        code = call(
            _program, program, arguments, dict(os.environ), Path.cwd(), out, err, timeout=timeout
        )
        done = subprocess.CompletedProcess(command, code, out.read_text(), err.read_text())
    if check:
        done.check_returncode()
    return done


def _program(
    program: str,
    arguments: list[str],
    environment: Mapping[str, str],
    folder: Path,
    out: Path,
    err: Path,
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    for stream, file in ((sys.stdout, out), (sys.stderr, err)):
        target = os.open(file, os.O_WRONLY | os.O_CREAT)
        os.dup2(target, stream.fileno())
        os.close(target)
    sys.argv = [program, *arguments]
    runpy.run_module(program, run_name="__main__", alter_sys=True)
