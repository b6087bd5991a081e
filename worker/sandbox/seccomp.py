"""Give up system calls that a computation has no use for, permanently (Linux; no privilege needed).

Landlock keeps a run from files and TCP; it does not keep it from sockets in the file system, from changing
modes and times of files it cannot open, or from asking the kernel for more. These calls then fail with EPERM.
https://docs.kernel.org/userspace-api/seccomp_filter.html
"""

import ctypes
import errno
import platform
import struct
import sys

PR_SET_SECCOMP, FILTER_MODE = 22, 2
LOAD, JUMP_IF_EQUAL, JUMP_IF_AT_LEAST, RETURN = 0x20, 0x15, 0x35, 0x06
ALLOW, REFUSE = 0x7FFF0000, 0x00050000 | errno.EPERM
NUMBER_AT, ARCHITECTURE_AT = 0, 4
X32 = 0x40000000
"""Numbers from here on are the same calls by another door."""

ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
REFUSED = {
    "x86_64": {
        "socket": 41, "ptrace": 101, "process_vm_readv": 310, "process_vm_writev": 311,
        "chmod": 90, "fchmodat": 268, "chown": 92, "lchown": 94, "fchown": 93, "fchownat": 260,
        "utime": 132, "utimes": 235, "futimesat": 261, "utimensat": 280,
        "setxattr": 188, "lsetxattr": 189, "fsetxattr": 190, "removexattr": 197, "lremovexattr": 198,
        "fremovexattr": 199, "mount": 165, "umount2": 166, "pivot_root": 155, "chroot": 161, "setns": 308,
        "unshare": 272, "bpf": 321, "perf_event_open": 298, "userfaultfd": 323, "add_key": 248,
        "request_key": 249, "keyctl": 250, "open_by_handle_at": 304, "kexec_load": 246, "init_module": 175,
        "finit_module": 313,
    },
    "aarch64": {
        "socket": 198, "ptrace": 117, "process_vm_readv": 270, "process_vm_writev": 271,
        "fchmodat": 53, "fchown": 55, "fchownat": 54, "utimensat": 88,
        "setxattr": 5, "lsetxattr": 6, "fsetxattr": 7, "removexattr": 14, "lremovexattr": 15,
        "fremovexattr": 16, "mount": 40, "umount2": 39, "pivot_root": 41, "chroot": 51, "setns": 268,
        "unshare": 97, "bpf": 280, "perf_event_open": 241, "userfaultfd": 282, "add_key": 217,
        "request_key": 218, "keyctl": 219, "open_by_handle_at": 265, "kexec_load": 104, "init_module": 105,
        "finit_module": 273,
    },
}  # fmt: skip
EVERYWHERE = {"io_uring_setup": 425, "mount_setattr": 442, "fchmodat2": 452, "setxattrat": 463}
"""`socketpair` stays, and `fchmod`: a file must have been opened for it."""


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def give_up_calls() -> bool:
    """Refuse these calls to this thread and all it starts; whether the kernel does so.

    The process must be unable to gain privileges (`PR_SET_NO_NEW_PRIVS`).
    """
    machine = platform.machine()
    if sys.platform != "linux" or machine not in ARCHITECTURES:
        return False
    code = _filter(machine)
    program = _Program(len(code) // 8, code)
    libc = ctypes.CDLL(None, use_errno=True)
    return bool(libc.prctl(PR_SET_SECCOMP, FILTER_MODE, ctypes.byref(program), 0, 0) == 0)


def _filter(machine: str) -> bytes:
    """Classic BPF: load the number, compare it with each refused one, allow what is left."""
    numbers = sorted({*REFUSED[machine].values(), *EVERYWHERE.values()})
    last = len(numbers) + 1
    lines = [
        _line(LOAD, ARCHITECTURE_AT),
        _line(JUMP_IF_EQUAL, ARCHITECTURES[machine], yes=1),
        _line(RETURN, REFUSE),
        _line(LOAD, NUMBER_AT),
        _line(JUMP_IF_AT_LEAST, X32, yes=last),
        *(
            _line(JUMP_IF_EQUAL, number, yes=last - 1 - place)
            for place, number in enumerate(numbers)
        ),
        _line(RETURN, ALLOW),
        _line(RETURN, REFUSE),
    ]
    return b"".join(lines)


def _line(code: int, value: int, *, yes: int = 0) -> bytes:
    """One instruction; where a comparison holds, skip `yes` others."""
    return struct.pack("HBBI", code, yes, 0, value)
