"""Errors of the machine, told from those of a model or a recipe. Free of torch."""

import errno
from typing import NamedTuple

DISK_FULL = "insufficient_disk"
HOST_MEMORY = "out_of_host_memory"
GPU_MEMORY = "out_of_gpu_memory"
NO_TEMPORARY = "No usable temporary directory found"
"""Python's word for a disk on which it cannot write a few bytes."""
FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


class MachineFailure(NamedTuple):
    """What the machine lacked."""

    code: str
    message: str
    may_pass: bool
    """Whether the same job can succeed on the same machine later."""


def machine_failure(error: BaseException) -> MachineFailure | None:
    """What of the machine made an error happen; None if it was not the machine.

    torch reports exhausted memory as a RuntimeError: on a GPU one of a class of its own, on a CPU in words
    only. safetensors says in words that a disk is full.
    """
    text = str(error)
    first = text.splitlines()[0][:300] if text else type(error).__name__
    full = isinstance(error, OSError) and error.errno in FULL
    if full or f"os error {errno.ENOSPC}" in text or NO_TEMPORARY in text:
        return MachineFailure(DISK_FULL, f"the disk is full: {first}", may_pass=True)
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return MachineFailure(
            HOST_MEMORY, f"this machine has too little memory: {first}", may_pass=False
        )
    if type(error).__name__ == "OutOfMemoryError" or "CUDA out of memory" in text:
        return MachineFailure(GPU_MEMORY, f"the GPU has too little memory: {first}", may_pass=False)
    if "CUBLAS_STATUS_ALLOC_FAILED" in text or "CUDA error: out of memory" in text:
        return MachineFailure(GPU_MEMORY, f"the GPU has too little memory: {first}", may_pass=False)
    words = (
        "DefaultCPUAllocator",
        "can't allocate memory",
        "std::bad_alloc",
        "Cannot allocate memory",
    )
    if isinstance(error, MemoryError) or any(word in text for word in words):
        return MachineFailure(
            HOST_MEMORY, f"this machine has too little memory: {first}", may_pass=False
        )
    return None
