"""Run a child program in its own process group and follow it to its end."""

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import IO, Annotated, Any, Protocol, Union

from pydantic import Field, TypeAdapter, ValidationError

from app.db.recovery import OVERDUE
from worker.children.messages import OF_ALL, Failed, Frozen, Message
from worker.errors import (
    CancelRequestedError,
    ChildFailedError,
    ChildRetryError,
    DrainRequestedError,
    LeaseLostError,
)
from worker.sandbox.usage import Limits, Meter
from worker.threads import PASSIVE_THREADS

POLL_SECONDS = 0.2
MAX_LINE = 8 << 20
"""Characters; a run's whole report is one line, a megabyte for a large model."""
LINES_WAITING = 16
LINGER_SECONDS = 5.0
KEPT_VARIABLES = (
    "PATH", "LANG", "LC_ALL", "TZ", "PYTHONPATH", "VIRTUAL_ENV", "LD_LIBRARY_PATH",
    "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE",
)  # fmt: skip
"""All a child inherits; in particular no token, database or broker address."""


@dataclass(frozen=True, slots=True)
class ChildProgram:
    """How to start one kind of child."""

    module: str
    extra_environment: Mapping[str, str]
    stall_seconds: float
    grace_seconds: float
    limits: Limits = field(default_factory=Limits)
    """Whoever takes more is killed, with all it started."""
    isolated: bool = False
    """Without a network, with process ids of its own and only the files it needs, where the kernel allows it."""
    says: tuple[type[Message], ...] = OF_ALL
    """Messages it may send; anything else is only text."""

    def home(self, scratch: Path) -> Path:
        """What one child leaves there, another must not find: it may have made the files of a Python."""
        return scratch / self.module.rpartition(".")[2]

    @contextmanager
    def started(
        self, spec: Frozen, scratch: Path, *more_folders: Path, reads: Sequence[Path] = ()
    ) -> Iterator["Child"]:
        """Start it with `spec` on its stdin; its whole group is gone when the block ends.

        Args:
            scratch: of the attempt; its home and temporary folder is a folder of its own in it.
            more_folders: where else it writes.
            reads: what else it reads, if it is isolated.
        """
        apart = []
        if self.isolated:
            writes = (self.home(scratch), *more_folders)
            apart = ["worker.sandbox.launcher", *(f"--read={path.resolve()}" for path in reads),
                     *(f"--write={path.resolve()}" for path in writes)]  # fmt: skip
        environment = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
        home = self.home(scratch)
        home.mkdir(exist_ok=True)
        environment |= {"HOME": str(home), "TMPDIR": str(home), "HF_HOME": str(home / "hf")}
        environment |= {
            **PASSIVE_THREADS,
            "PYTHONUNBUFFERED": "1",
            "PYTHONNOUSERSITE": "1",
            **self.extra_environment,
        }
        process = subprocess.Popen(  # noqa: S603  a fixed module of ours, no shell
            [sys.executable, "-m", *apart, self.module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        child = Child(process, self, Meter(self.limits, process.pid, (scratch, *more_folders)))
        try:
            child.tell(spec.model_dump_json())
            yield child
        finally:
            child.end()


class LeaseSignals(Protocol):
    """What the supervisor learns of its claim on the job while a child runs."""

    canceled: threading.Event
    """The client wants the job stopped."""
    overdue: threading.Event
    """The job has run as long as it may."""
    lost: threading.Event
    """Another worker may have the job now."""

    def overran(self) -> bool:
        """Whether the lease ended before it could be renewed."""


class Stopping(Protocol):
    """Whether this worker is being stopped."""

    def is_set(self) -> bool:
        """True from then on."""


class Child:
    """A running child program."""

    def __init__(
        self, process: "subprocess.Popen[str]", program: ChildProgram, meter: Meter
    ) -> None:
        self.process = process
        self._program, self._meter = program, meter
        self._lines: queue.Queue[tuple[str, str]] = queue.Queue(LINES_WAITING)
        self._ended = threading.Event()
        self._readers = [
            threading.Thread(target=self._read, args=(name, stream), daemon=True)
            for name, stream in (("out", process.stdout), ("err", process.stderr))
        ]
        self._quiet_since: float | None = None
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
        heartbeat: LeaseSignals,
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
        error: Failed | None = None
        while (received := self._next(heartbeat, stopping)) is not None:
            stream, line = received
            message = _parse(line, self._program.says) if stream == "out" else None
            if message is None:
                on_text(line)
            elif isinstance(message, Failed):
                error = message
            else:
                on_message(message)
        self._judge(error)

    def _next(self, heartbeat: LeaseSignals, stopping: Stopping | None) -> tuple[str, str] | None:
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

    def _require_wanted(self, heartbeat: LeaseSignals, stopping: Stopping | None) -> None:
        """Raise if the child is to be stopped."""
        if heartbeat.lost.is_set() or heartbeat.overran():
            raise LeaseLostError
        if heartbeat.canceled.is_set():
            raise CancelRequestedError
        if stopping is not None and heartbeat.overdue.is_set():
            raise ChildFailedError(OVERDUE)
        if stopping is not None and stopping.is_set():
            raise DrainRequestedError
        excess = self._meter.excess()
        if excess is not None:
            raise ChildFailedError(excess)

    def end(self) -> None:
        """Ask the process group to end, then kill what is left of it."""
        self._ended.set()
        _signal_group(self.process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(self._program.grace_seconds)
        _signal_group(self.process.pid, signal.SIGKILL)
        self.process.wait()
        if self.process.stdin is not None:
            _close(self.process.stdin)
        for reader in self._readers:  # somebody who left the group may hold a pipe without end
            reader.join(POLL_SECONDS)

    def _finished(self) -> bool:
        """It has ended and all it wrote is read; a process that left the group may hold its pipe without end."""
        lingering = any(reader.is_alive() for reader in self._readers)
        # In this order: a reader may pass its last line on and end between two looks.
        if self.process.poll() is None or not self._lines.empty():
            self._quiet_since = None
            return False
        if self._quiet_since is None:
            self._quiet_since = time.monotonic()
        return not lingering or time.monotonic() - self._quiet_since > LINGER_SECONDS

    def _judge(self, error: Failed | None) -> None:
        if error is not None and error.retryable:
            raise ChildRetryError(error.code, error.message)
        if error is not None:
            raise ChildFailedError(error.model_dump(exclude={"type"}))
        status = self.process.returncode
        if status != 0:
            raise ChildRetryError(
                "runner_crashed", f"{self._program.module} ended with status {status}"
            )

    def _read(self, name: str, stream: IO[str]) -> None:
        """Pass lines on. Who writes faster than they are taken has to wait; what is too long is cut."""
        whole = True
        with stream:
            while line := stream.readline(MAX_LINE):
                if whole and not self._passed_on((name, line.rstrip("\n"))):
                    return
                whole = line.endswith("\n")

    def _passed_on(self, line: tuple[str, str]) -> bool:
        while not self._ended.is_set():
            with suppress(queue.Full):
                self._lines.put(line, timeout=POLL_SECONDS)
                return True
        return False


def _parse(line: str, known: tuple[type[Message], ...]) -> Message | None:
    """A message of a known type, or None for a line that is only text."""
    try:
        message: Message = _reader(known).validate_json(line)
    except ValidationError:
        return None
    return message


@cache
def _reader(known: tuple[type[Message], ...]) -> TypeAdapter[Any]:
    messages: Any = Union[known]  # noqa: UP007 - not known before
    return TypeAdapter(Annotated[messages, Field(discriminator="type")])


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
