"""Errors of the machine, told from bugs."""

import errno

import pytest
import torch
from safetensors import SafetensorError

from spq_core.machine import machine_failure

FAILURES = {
    "a full disk": (OSError(errno.ENOSPC, "No space left on device"), "insufficient_disk"),
    "a quota": (OSError(errno.EDQUOT, "Disk quota exceeded"), "insufficient_disk"),
    "safetensors on a full disk": (SafetensorError("I/O error: No space left (os error 28)"), "insufficient_disk"),
    "no room for a temporary file": (
        FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']"), "insufficient_disk",
    ),
    "Python": (MemoryError(), "out_of_host_memory"),
    "the kernel": (OSError(errno.ENOMEM, "Cannot allocate memory"), "out_of_host_memory"),
    "a GPU": (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "out_of_gpu_memory"),
    "its libraries": (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED"), "out_of_gpu_memory"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAILURES)
def test_it_has_a_code_of_its_own(name):
    error, code = FAILURES[name]
    failure = machine_failure(error)
    assert failure is not None
    assert failure.code == code
    assert failure.may_pass == (code == "insufficient_disk")


def test_torch_on_a_cpu_says_so_in_words():
    with pytest.raises(RuntimeError) as refused:
        torch.empty(1 << 50, dtype=torch.uint8)
    failure = machine_failure(refused.value)
    assert failure is not None
    assert failure.code == "out_of_host_memory"


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), OSError(errno.ENOENT, "x"), KeyError("a")])  # fmt: skip
def test_a_bug_is_none(error):
    assert machine_failure(error) is None
