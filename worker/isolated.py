"""Run one of our child programs without a network: `python -m worker.isolated MODULE`.

A namespace can only be left by a process with one thread, so this comes before the libraries that start
some. Where the kernel does not allow it the program runs all the same, without tokens and told to be
offline; `isolation` says which it is.
"""

import ctypes
import os
import runpy
import sys

CLONE_NEWUSER = 0x10000000
CLONE_NEWNET = 0x40000000
VARIABLE = "SPQ_ISOLATION"


def leave_the_network() -> str:
    """Move into an empty network namespace; return `network`, or `none` where that is not allowed."""
    if sys.platform != "linux":
        return "none"
    libc = ctypes.CDLL(None, use_errno=True)
    for flags in (CLONE_NEWNET, CLONE_NEWUSER | CLONE_NEWNET):
        if libc.unshare(flags) == 0:
            return "network"
    return "none"


if __name__ == "__main__":
    os.environ[VARIABLE] = leave_the_network()
    module = sys.argv.pop(1)
    runpy.run_module(module, run_name="__main__", alter_sys=True)
