"""What a run may take of its machine, and how much it takes (Linux: read from /proc)."""

import math
import os
import resource
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spq_core.machine import HOST_MEMORY

EXCESS_CODES = frozenset({HOST_MEMORY, "too_many_processes", "disk_quota_exceeded"})
"""Of runs that were ended because they took too much."""
LOOK_SECONDS, DISK_LOOK_SECONDS = 1.0, 5.0
PROCESSES = 64
"""At once; a run starts two or three."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Of a child program and all it starts."""

    memory_bytes: float = math.inf
    """Resident; pages that processes share count once, where the kernel tells."""
    disk_bytes: float = math.inf
    """In the attempt's own folders."""
    processes: int = PROCESSES


@dataclass(slots=True)
class Meter:
    """Looks from time to time at a process, what it started, and the folders it writes to."""

    limits: Limits
    pid: int
    folders: Sequence[Path]
    _look_at: float = 0.0
    _disk_look_at: float = field(default_factory=time.monotonic)

    def excess(self) -> dict[str, Any] | None:
        """The error of a run that takes too much; None while it does not."""
        moment = time.monotonic()
        if moment < self._look_at:
            return None
        self._look_at = moment + LOOK_SECONDS
        memory, processes = tree_usage(self.pid)
        # Looking through every page takes the kernel a while, so only where it matters.
        if memory > self.limits.memory_bytes and shared_once(self.pid) > self.limits.memory_bytes:
            return _error(HOST_MEMORY, "more memory than its worker's SPQ_MAX_RUN_BYTES")
        if processes > self.limits.processes:
            return _error(
                "too_many_processes", f"more than {self.limits.processes} processes at once"
            )
        if not math.isinf(self.limits.disk_bytes) and moment >= self._disk_look_at:
            self._disk_look_at = moment + DISK_LOOK_SECONDS
            if sum(map(folder_bytes, self.folders)) > self.limits.disk_bytes:
                return _error(
                    "disk_quota_exceeded", "more disk than its worker's SPQ_MAX_RUN_DISK_BYTES"
                )
        return None


def tree_usage(root: int) -> tuple[int, int]:
    """Resident bytes and number of a process and all that descend from it; pages that several share count for each."""
    found = _tree(root)
    return sum(found.values()), len(found)


def shared_once(root: int) -> int:
    """Resident bytes of a process and all that descend from it; what several share is divided among them."""
    return sum(_proportional(pid, resident) for pid, resident in _tree(root).items())


def _proportional(pid: int, otherwise: int) -> int:
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    except OSError:  # not for us to read, or it ended meanwhile
        return otherwise
    return next(int(line.split()[1]) << 10 for line in text.splitlines() if line.startswith("Pss:"))


def _tree(root: int) -> dict[int, int]:
    """Resident bytes of each process."""
    resident: dict[int, int] = {}
    children = defaultdict(list)
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            text = (folder / "stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue  # it ended meanwhile
        # After the name, which may hold anything: state, parent, and 20 fields on, pages.
        fields = text.rpartition(")")[2].split()
        resident[int(folder.name)] = int(fields[21]) * resource.getpagesize()
        children[int(fields[1])].append(int(folder.name))
    found, waiting = {}, [root] if root in resident else []
    while waiting:
        one = waiting.pop()
        found[one] = resident[one]
        waiting += children[one]
    return found


def folder_bytes(folder: Path) -> int:
    """What the files below a folder take on its disk."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += (Path(parent) / name).lstat().st_blocks * 512
            except OSError:
                continue  # removed meanwhile
    return total


def _error(code: str, what: str) -> dict[str, Any]:
    return {"code": code, "message": f"the run took {what}", "retryable": False}
