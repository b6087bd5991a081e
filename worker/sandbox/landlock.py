"""Keep this process and all it starts to a few folders, by Landlock (Linux 5.19 and later, no privilege needed).

What is not listed can be neither read nor written: the service's database and keys on this machine, other
tenants' artifacts. The kernel then also refuses to let it look into processes outside (their environment
and memory), from 6.7 on TCP, and from 6.12 on signals to processes outside.
https://docs.kernel.org/userspace-api/landlock.html
"""

import ctypes
import os
import stat
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
"""System calls; these numbers are the same on all architectures."""
ASK_VERSION, PATH_BENEATH = 1, 1

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
ALL_OF_VERSION = {2: (1 << 14) - 1, 3: (1 << 15) - 1}
"""Rights on files that a kernel can withhold: the first with moves between folders, the second with truncating."""
TRUNCATE = 1 << 14
OF_A_FILE = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE
READING = EXECUTE | READ_FILE | READ_DIR
TCP = 0b11
SCOPES = 0b11
"""Abstract sockets and signals, from version 6 on."""
TCP_VERSION, SCOPES_VERSION = 4, 6
O_PATH = 0o10000000

SYSTEM = (
    "/usr", "/lib", "/lib32", "/lib64", "/bin", "/sbin", "/nix/store", "/proc", "/sys",
    "/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/alternatives", "/etc/localtime",
    "/etc/timezone", "/etc/nsswitch.conf", "/etc/passwd", "/etc/group", "/etc/OpenCL", "/etc/vulkan",
    "/etc/mime.types", "/etc/ssl", "/etc/pki", "/etc/ca-certificates",
)  # fmt: skip
"""What libraries, drivers among them, read. Not /etc as a whole, nor /opt, /home, /run, /var."""
DEVICES = ("null", "zero", "full", "random", "urandom", "nvidia*", "dri", "kfd", "dxg")
CODE = ("app", "spq_core", "worker", "*.egg-info", "*.dist-info")


class _Ruleset(ctypes.Structure):
    _fields_ = (
        ("files", ctypes.c_uint64),
        ("network", ctypes.c_uint64),
        ("scopes", ctypes.c_uint64),
    )


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("folder", ctypes.c_int32))


def confine(reads: Iterable[Path], writes: Iterable[Path]) -> tuple[str, ...]:
    """Give up all files but these, and those that Python and its libraries are made of, permanently.

    The process must have one thread, and be unable to gain privileges (`PR_SET_NO_NEW_PRIVS`).

    Returns:
        what it is kept from: nothing, `files`, or `files` and `tcp`.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    version = libc.syscall(CREATE_RULESET, None, 0, ASK_VERSION) if sys.platform == "linux" else -1
    if version < min(ALL_OF_VERSION):
        return ()
    everything = ALL_OF_VERSION[min(version, max(ALL_OF_VERSION))]
    wanted = _Ruleset(
        everything,
        TCP if version >= TCP_VERSION else 0,
        SCOPES if version >= SCOPES_VERSION else 0,
    )
    ruleset = libc.syscall(CREATE_RULESET, ctypes.byref(wanted), ctypes.sizeof(wanted), 0)
    if ruleset < 0:
        return ()
    root = Path(__file__).resolve().parents[2]
    rules = [
        *((path, READING) for path in (*_python(root), *map(Path, SYSTEM), *reads)),
        *((path, READING) for name in CODE for path in root.glob(name)),
        (root, READ_DIR),  # or Python finds no module in it
        *((path, everything) for name in DEVICES for path in Path("/dev").glob(name)),
        *((path, everything) for path in writes),
    ]
    for path, allowed in rules:
        _allow(libc, ruleset, path, allowed & everything)
    confined = libc.syscall(RESTRICT_SELF, ruleset, 0) == 0
    os.close(ruleset)
    if not confined:
        return ()
    return ("files", "tcp") if version >= TCP_VERSION else ("files",)


def _allow(libc: ctypes.CDLL, ruleset: int, path: Path, allowed: int) -> None:
    """Allow what is there; not everything is on every machine."""
    try:
        place = os.open(path, O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    if not stat.S_ISDIR(os.fstat(place).st_mode):
        allowed &= OF_A_FILE
    rule = _PathBeneath(allowed, place)
    libc.syscall(ADD_RULE, ruleset, PATH_BENEATH, ctypes.byref(rule), 0)
    os.close(place)


def _python(root: Path) -> list[Path]:
    """Where this Python's modules and libraries are: all of its path but the working directory and our own root."""
    libraries = os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep)
    packages = [Path(entry) for entry in sys.path[1:] if entry and Path(entry).is_dir()]
    packages = [path for path in packages if path.resolve() not in {Path.cwd(), root}]
    places = [
        Path(place) for place in (sys.prefix, sys.base_prefix, sys.exec_prefix, *libraries) if place
    ]
    return [*places, *packages, *_linked(packages)]


def _linked(packages: Iterable[Path]) -> Iterator[Path]:
    """Where installers that link instead of copying keep what they link to."""
    for entry in (entry for path in packages for entry in path.iterdir()):
        for path in (entry, entry / "__init__.py"):
            if path.is_symlink():
                place = path.resolve()
                yield place if place.is_dir() else place.parent
