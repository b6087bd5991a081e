"""Programs in fresh processes, without the seconds that a new interpreter takes to import torch and transformers.

A run that has computed nothing yet forks a process that only waits. Whatever it is asked for it forks again: that process has
imported what the run had imported, and knows nothing of what the run has done since. Where there is none (not Linux, an old
kernel, nobody asked for one) a new interpreter does the same, later.
"""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from subprocess import CompletedProcess
from tempfile import TemporaryFile
from typing import NoReturn

LONGEST_REQUEST = 1 << 16
STANDARD_STREAMS = 3


class _GoneError(Exception):
    """The process that waits has ended."""


class _Waiting:
    """The process that waits, as the run sees it."""

    def __init__(self) -> None:
        # Requests keep their borders, and the end of one side ends the other.
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sys.stdout.flush()
        sys.stderr.flush()
        self._pid = os.fork()
        if self._pid == 0:
            ours.close()
            _wait(theirs)
        theirs.close()
        self._connection = ours

    def run(self, program: str, arguments: Sequence[str], seconds: float) -> CompletedProcess[str]:
        """See `run_fresh`."""
        with TemporaryFile() as out, TemporaryFile() as err:
            request = json.dumps([program, *arguments]).encode()
            self._connection.settimeout(seconds)
            try:
                socket.send_fds(self._connection, [request], [out.fileno(), err.fileno()])
                answer = self._connection.recv(LONGEST_REQUEST)
            except TimeoutError:
                raise subprocess.TimeoutExpired(program, seconds) from None
            except ConnectionError:
                raise _GoneError from None
            if not answer:
                raise _GoneError
            code = int(answer)
            texts = []
            for file in (out, err):
                file.seek(0)
                texts.append(file.read().decode(errors="replace"))
        return CompletedProcess([program, *arguments], code, *texts)

    def end(self) -> None:
        """End it, and what it runs."""
        self._connection.close()
        os.waitpid(self._pid, 0)


_waiting: _Waiting | None = None


@contextmanager
def fresh_process_ready() -> Iterator[None]:
    """Keep a process ready for `run_fresh`.

    To be entered before anything is computed: what a thread pool was doing is lost in a fork, and so is a device's context.
    """
    global _waiting  # noqa: PLW0603 - of the whole process, as its children are
    before, _waiting = _waiting, _Waiting() if _can_wait() else None
    try:
        yield
    finally:
        if _waiting is not None:
            _waiting.end()
        _waiting = before


def run_fresh(program: str, arguments: Sequence[str], seconds: float) -> CompletedProcess[str]:
    """Run `main` of a module in a fresh process, with these arguments in `sys.argv`.

    Args:
        seconds: it may take.

    Returns:
        what it wrote, and its exit code, negative if a signal ended it.

    Raises:
        subprocess.TimeoutExpired: it took longer, and is gone.
    """
    global _waiting  # noqa: PLW0603
    if _waiting is not None:
        waiting, _waiting = _waiting, None
        try:
            done = waiting.run(program, arguments, seconds)
        except BaseException as error:
            waiting.end()
            if not isinstance(error, _GoneError):
                raise
        else:
            _waiting = waiting
            return done
    return subprocess.run(  # noqa: S603 - our own program
        [sys.executable, "-m", program, *arguments],
        check=False, capture_output=True, text=True, timeout=seconds,
    )  # fmt: skip


def _can_wait() -> bool:
    if sys.platform != "linux":
        return False
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError:
        return False
    return True


def _wait(connection: socket.socket) -> NoReturn:
    """Fork for each request, until nobody is there to ask."""
    with suppress(BaseException):
        # A Ctrl-C goes to the whole group; the run, which gets it too, ends this process.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        _leave_streams()
        while True:
            request, files, *_ = socket.recv_fds(connection, LONGEST_REQUEST, 2)
            if not request:
                break
            child = os.fork()
            if child == 0:
                connection.close()
                _become(json.loads(request), files)
            for file in files:
                os.close(file)
            connection.send(str(_end_of(child, connection)).encode())
    os._exit(0)


def _leave_streams() -> None:
    """Whoever reads what the run writes waits for the end of all that hold its pipe."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in range(STANDARD_STREAMS):
        os.dup2(nothing, stream)
    os.close(nothing)


def _end_of(child: int, connection: socket.socket) -> int:
    """The exit code of a child; if the run ends before, so does the child."""
    handle = os.pidfd_open(child)
    try:
        ended, _, _ = select.select([handle, connection.fileno()], [], [])
        if handle not in ended:
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    finally:
        os.close(handle)
    return os.waitstatus_to_exitcode(status)


def _become(request: list[str], files: list[int]) -> NoReturn:
    """Be the program; return to nobody's code."""
    code: object = 1
    try:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        out, err = files
        os.dup2(out, 1)
        os.dup2(err, 2)
        sys.stdout, sys.stderr = (os.fdopen(stream, "w", closefd=False) for stream in (1, 2))
        sys.argv = list(request)
        import_module(request[0]).main()
        code = 0
    except SystemExit as end:
        code = end.code or 0
    except BaseException:  # noqa: BLE001 - the edge of a process
        traceback.print_exc()
    finally:
        with suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)
