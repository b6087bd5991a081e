"""Run one of our child programs apart from the machine: `python -m worker.sandbox.launcher [--read PATH]… [--write PATH]… MODULE`.

Two Linux namespaces: one without a network, and one of process ids, whose end takes every process in it
along, also those that left the process group. Three processes come of it:

    outside   waits, and ends as the program ended; the supervisor knows this one
    init      the first of the namespace: reaps orphans; when it ends, the kernel kills all others
    program   MODULE

It also gives up all files but those it is told of (`worker.sandbox.landlock`), and system calls it has no use
for (`worker.sandbox.seccomp`). A user namespace can only be made by
a process with one thread, so this comes before the libraries that start some. What the kernel does not
allow is left out, and the program runs all the same, without tokens and told to be offline; the variable
`SPQ_ISOLATION` says what it is kept from.
"""

import argparse
import ctypes
import json
import os
import runpy
import signal
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from spq_core.machine import machine_failure
from worker.sandbox.landlock import confine
from worker.sandbox.seccomp import give_up_calls

CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
PR_SET_PDEATHSIG = 1
PR_SET_NO_NEW_PRIVS = 38
VARIABLE = "SPQ_ISOLATION"
CALLS, NETWORK, PROCESSES, TCP = "calls", "network", "processes", "tcp"


def isolate(reads: Iterable[Path] = (), writes: Iterable[Path] = ()) -> list[str]:
    """Leave the network, have the next child begin a namespace of process ids, and give up other files.

    Returns:
        what the kernel allowed, of `calls`, `files`, `network` (or `tcp` alone), and `processes`.
    """
    if sys.platform != "linux":
        return []
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    # With a user namespace first: in it, root is nobody outside.
    both = CLONE_NEWNET | CLONE_NEWPID
    apart = any(libc.unshare(flags) == 0 for flags in (both | CLONE_NEWUSER, both))
    found = set(confine(reads, writes))
    if apart:
        found = found - {TCP} | {NETWORK, PROCESSES}
    if give_up_calls():
        found.add(CALLS)
    return sorted(found)


def die_with_parent(number: int = signal.SIGKILL, parent: int | None = None) -> None:
    """Ask the kernel to signal this process when the one that started it is gone (Linux)."""
    if sys.platform == "linux":
        parent = parent or os.getppid()
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)
        if os.getppid() != parent:
            sys.exit(1)


def become_the_program() -> None:
    """Fork twice; only the program returns from this."""
    signal.signal(
        signal.SIGTERM, signal.SIG_IGN
    )  # it goes to the whole group: the program obeys it
    for _ in ("init", "program"):
        child = os.fork()
        if child:
            os._exit(_end_of(child))
        die_with_parent()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _end_of(child: int) -> int:
    """Reap children until this one has ended; return its exit status as a shell would show it."""
    while True:
        pid, status = os.wait()
        if pid == child:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


if __name__ == "__main__":
    die_with_parent()
    parser = argparse.ArgumentParser()
    parser.add_argument("--read", type=Path, action="append", default=[])
    parser.add_argument("--write", type=Path, action="append", default=[])
    parser.add_argument("module")
    asked = parser.parse_args()
    module, sys.argv = asked.module, sys.argv[:1]
    kept_from = isolate(asked.read, asked.write)
    os.environ[VARIABLE] = ",".join(kept_from)
    die_with_parent()  # again: a change of credentials forgets it
    if PROCESSES in kept_from:
        become_the_program()
    with suppress(KeyboardInterrupt):
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        except OSError as error:  # importing libraries already takes room on a disk
            failure = machine_failure(error)
            if failure is None:
                raise
            told = {"code": failure.code, "message": failure.message, "retryable": failure.may_pass}
            sys.stdout.write(json.dumps({"type": "error", **told}) + "\n")
            sys.exit(1)
