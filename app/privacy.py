"""Keep other processes of the same user out of this one's memory and environment."""

import ctypes
import sys

PR_SET_DUMPABLE = 4


def hide_process() -> None:
    """Let nobody but root read `/proc/<this>/environ` and memory; both hold secrets. No core is dumped either.

    Runs are other programs of the same user. What this process starts can be read again: `exec` resets it.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
