"""Run a child program in its own process group and follow it to its end."""

import json
import math
import os
import queue
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

from worker.errors import (
    CancelRequestedError,
    ChildFailedError,
    ChildRetryError,
    DrainRequestedError,
    LeaseLostError,
)
from worker.heartbeat import Heartbeat

POLL_SECONDS = 0.2
KEPT_VARIABLES = (
    "PATH", "LANG", "LC_ALL", "TZ", "PYTHONPATH", "VIRTUAL_ENV", "LD_LIBRARY_PATH",
    "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE",
)  # fmt: skip
"""All a child inherits; in particular no token, database or broker address."""

PASSIVE_THREADS = {"OMP_WAIT_POLICY": "PASSIVE"}
"""Idle OpenMP threads that spin without end slow a neighbour process down many times."""
SPINNING_THREADS = {"GOMP_SPINCOUNT": "10000"}
"""Some ten microseconds: longer than between two operations of a forward pass. GNU's OpenMP, which torch
brings on Linux, reads it before the policy."""

OVERDUE = {
    "code": "deadline_exceeded",
    "message": "the job took longer than its limits.max_runtime_seconds",
    "retryable": False,
}
OUT_OF_MEMORY = {
    "code": "out_of_host_memory",
    "message": "the run took more memory than SPQ_MAX_RUN_BYTES of its worker allows",
    "retryable": False,
}
MEMORY_SECONDS = 1.0
Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ChildProgram:
    """How to start one kind of child."""

    module: str
    extra_environment: Mapping[str, str]
    stall_seconds: float
    grace_seconds: float
    max_bytes: float = math.inf
    """Resident memory of the child and all it starts; above it the group is killed."""
    isolated: bool = False
    """Without a network, where the kernel allows it."""

    @contextmanager
    def started(self, spec: dict[str, Any], scratch: Path) -> Iterator["Child"]:
        """Start it with `spec` on its stdin; its whole group is gone when the block ends."""
        environment = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
        environment |= {
            "HOME": str(scratch),
            "TMPDIR": str(scratch),
            "HF_HOME": str(scratch / "hf"),
        }
        environment |= {
            **PASSIVE_THREADS,
            "PYTHONUNBUFFERED": "1",
            **self.extra_environment,
        }
        process = subprocess.Popen(  # noqa: S603  a fixed module of ours, no shell
            [sys.executable, "-m", *(["worker.isolated"] if self.isolated else []), self.module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        child = Child(process, self)
        try:
            child.tell(json.dumps(spec))
            yield child
        finally:
            child.end()


class Stopping(Protocol):
    """Whether this worker is being stopped."""

    def is_set(self) -> bool:
        """True from then on."""


class Child:
    """A running child program."""

    def __init__(self, process: "subprocess.Popen[str]", program: ChildProgram) -> None:
        self.process = process
        self._program = program
        self._look_again = 0.0
        self._lines: queue.Queue[tuple[str, str]] = queue.Queue()
        self._readers = [
            threading.Thread(target=self._read, args=(name, stream), daemon=True)
            for name, stream in (("out", process.stdout), ("err", process.stderr))
        ]
        for reader in self._readers:
            reader.start()

    def tell(self, line: str) -> None:
        """Write one line to the child's stdin; a dead child is noticed when it is followed."""
        if self.process.stdin is None:
            raise RuntimeError("the child was started without a pipe")
        try:
            self.process.stdin.write(f"{line}\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            return

    def follow(
        self,
        heartbeat: Heartbeat,
        on_message: Callable[[Message], None],
        on_text: Callable[[str], None],
        stopping: Stopping | None = None,
    ) -> None:
        """Deliver messages until the child ends.

        Raises:
            CancelRequestedError, LeaseLostError: the heartbeat said so; the child may still run.
            DrainRequestedError: `stopping` was set; the child may still run.
            ChildFailedError, ChildRetryError: the child reported an error, died or stalled.
        """
        error: Message | None = None
        while (received := self._next(heartbeat, stopping)) is not None:
            stream, line = received
            message = _parse(line) if stream == "out" else None
            if message is None:
                on_text(line)
            elif message["type"] == "error":
                error = message
            else:
                on_message(message)
        self._judge(error)

    def _next(self, heartbeat: Heartbeat, stopping: Stopping | None) -> tuple[str, str] | None:
        """The next line of the child, None when it has ended; watches the heartbeat meanwhile."""
        deadline = time.monotonic() + self._program.stall_seconds
        while time.monotonic() < deadline:
            self._require_wanted(heartbeat, stopping)
            try:
                return self._lines.get(timeout=POLL_SECONDS)
            except queue.Empty:
                if self._finished():
                    return None
        raise ChildRetryError("stalled", f"no progress for {self._program.stall_seconds:g} s")

    def _require_wanted(self, heartbeat: Heartbeat, stopping: Stopping | None) -> None:
        """Raise if the child is to be stopped."""
        if heartbeat.lost.is_set() or heartbeat.overran():
            raise LeaseLostError
        if heartbeat.canceled.is_set():
            raise CancelRequestedError
        if stopping is not None and heartbeat.overdue.is_set():
            raise ChildFailedError(OVERDUE)
        if stopping is not None and stopping.is_set():
            raise DrainRequestedError
        if self._used_bytes() > self._program.max_bytes:
            raise ChildFailedError(OUT_OF_MEMORY)

    def _used_bytes(self) -> int:
        """Resident memory of the group, looked up once a second; 0 where nothing is limited."""
        if math.isinf(self._program.max_bytes) or time.monotonic() < self._look_again:
            return 0
        self._look_again = time.monotonic() + MEMORY_SECONDS
        return group_rss_bytes(self.process.pid)

    def end(self) -> None:
        """Ask the process group to end, then kill what is left of it."""
        _signal_group(self.process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(self._program.grace_seconds)
        _signal_group(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream is not None:
                _close(stream)

    def _finished(self) -> bool:
        return (
            self.process.poll() is not None
            and self._lines.empty()
            and not any(reader.is_alive() for reader in self._readers)
        )

    def _judge(self, error: Message | None) -> None:
        if error is not None and error.get("retryable"):
            raise ChildRetryError(str(error["code"]), str(error["message"]))
        if error is not None:
            raise ChildFailedError({key: error[key] for key in ("code", "message", "retryable")})
        status = self.process.returncode
        if status != 0:
            raise ChildRetryError(
                "runner_crashed", f"{self._program.module} ended with status {status}"
            )

    def _read(self, name: str, stream: IO[str]) -> None:
        try:
            for line in stream:
                self._lines.put((name, line.rstrip("\n")))
        except ValueError:
            return  # closed while reading: the attempt is over


def group_rss_bytes(group: int) -> int:
    """Resident memory of all processes of a group; pages they share count once for each (Linux)."""
    total = 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            # After the name, which may hold anything: state, parent, group, … and 21 fields on, pages.
            fields = (
                (folder / "stat")
                .read_text(encoding="utf-8", errors="replace")
                .rpartition(")")[2]
                .split()
            )
        except OSError:
            continue  # it ended meanwhile
        if int(fields[2]) == group:
            total += int(fields[21]) * resource.getpagesize()
    return total


def _parse(line: str) -> Message | None:
    """A message, or None for a line that is only text."""
    try:
        message = json.loads(line)
    except ValueError:
        return None
    return message if isinstance(message, dict) and "type" in message else None


def _signal_group(group: int, number: int) -> None:
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        return


def _close(stream: IO[str]) -> None:
    try:
        stream.close()
    except OSError:
        return  # unwritten input of a dead child
