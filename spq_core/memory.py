"""How much memory this process used, as the kernel counts it."""

import ctypes
import mmap
import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

LIMIT_VARIABLE = "SPQ_MEMORY_BYTES"
_STATUS = Path("/proc/self/status")
MADV_PAGEOUT = 21
_PAGE = mmap.PAGESIZE
_CLEAR = Path("/proc/self/clear_refs")
_MEMINFO = Path("/proc/meminfo")
_GROUPS = Path("/proc/self/cgroup")
_HIERARCHIES = (  # of version 2 and 1: where it is, whose line names the group, the file with its limit
    (Path("/sys/fs/cgroup"), "", "memory.max"),
    (Path("/sys/fs/cgroup/memory"), "memory", "memory.limit_in_bytes"),
)


def reset_peak_rss() -> bool:
    """Start a new measurement of the resident peak; False where the kernel does not allow it."""
    try:
        _CLEAR.write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def peak_rss_bytes() -> int:
    """Highest resident memory since the last reset, mapped files included; 0 where unknown."""
    return _field("VmHWM")


def rss_bytes() -> int:
    """Resident memory now; 0 where unknown."""
    return _field("VmRSS")


def memory_limit() -> int | None:
    """Bytes that this process may use: the least that its machine, its container, it itself and SPQ_MEMORY_BYTES allow.

    None where nothing is known.
    """
    return min(_limits(), default=None)


def _limits() -> Iterator[int]:
    said = os.environ.get(LIMIT_VARIABLE, "")
    if said.isdecimal():
        yield int(said)
    for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA):
        soft, _ = resource.getrlimit(kind)
        if soft != resource.RLIM_INFINITY:
            yield soft
    for file in _limit_files():
        try:
            text = file.read_text(encoding="ascii").strip()
        except OSError:
            continue
        if text.isdecimal():
            yield int(text)
    total = _field("MemTotal", _MEMINFO)
    if total:
        yield total


def _limit_files() -> Iterator[Path]:
    """Of the group this process is in, and of the groups around it."""
    try:
        lines = _GROUPS.read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    for root, controller, name in _HIERARCHIES:
        yield root / name  # a container sees its own group there
        for line in lines:
            _, controllers, path = line.split(":", 2)
            if controller in controllers.split(","):
                group = root / path.lstrip("/")
                for folder in (group, *group.parents):
                    if folder.is_relative_to(root):
                        yield folder / name


def return_freed_memory() -> None:
    """Give what was freed back to the system: glibc keeps pages that lie between used ones."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
        if trim is not None:
            trim(0)


def page_out(address: int, length: int) -> None:
    """Let the kernel take back pages that will not be used again, as of a mapped file (Linux).

    What is read there later is the same as before; only whole pages inside the range are let go.
    """
    if sys.platform != "linux":
        return
    first = -(-address // _PAGE) * _PAGE
    whole = (address + length - first) // _PAGE * _PAGE
    if whole > 0:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(whole), MADV_PAGEOUT)


def _field(name: str, file: Path = _STATUS) -> int:
    try:
        lines = file.read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), 0)
