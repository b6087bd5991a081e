"""How much memory this process used, as the kernel counts it."""

import ctypes
import mmap
import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")
MADV_PAGEOUT = 21
_PAGE = mmap.PAGESIZE
_CLEAR = Path("/proc/self/clear_refs")


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


def _field(name: str) -> int:
    try:
        lines = _STATUS.read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), 0)
