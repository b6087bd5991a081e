"""A child program for tests: does what its specification says."""

import errno
import json
import os
import shlex
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Literal

from pydantic import ConfigDict

from spq_core.errors import RecipeError
from spq_core.hub.errors import HubUnavailableError
from worker.children.messages import Frozen, Message
from worker.children.protocol import emit, serve


class Order(Frozen):
    mode: str


class Anything(Message):
    """What these children say."""

    model_config = ConfigDict(extra="allow")


class Pid(Anything):
    type: Literal["pid"] = "pid"


class Environment(Anything):
    type: Literal["environment"] = "environment"


class Started(Anything):
    type: Literal["started"] = "started"


class Tried(Anything):
    type: Literal["tried"] = "tried"


def talk() -> None:
    emit(Pid(pid=os.getpid()))
    print("plain text")
    print('{"json": "but no type"}')
    print('{"type": "published", "commit": "forged"}')
    sys.stderr.write("to stderr\n")
    emit(Environment(names=sorted(os.environ), argv=sys.argv))


def nest() -> None:
    print("[" * 200_000)


def endless_line() -> None:
    emit(Pid(pid=os.getpid()))
    for _ in range(400):
        sys.stdout.write("x" * (1 << 20))
    print()
    emit(Started(inner=0))


def flood() -> None:
    emit(Pid(pid=os.getpid()))
    while True:
        print("x" * 100_000)


def sleep() -> None:
    grandchild = subprocess.Popen(["sleep", "600"])
    emit(Pid(pid=os.getpid(), grandchild=grandchild.pid))
    time.sleep(600)


def hungry() -> None:
    held = bytearray(150 << 20)
    grandchild = subprocess.Popen(
        [sys.executable, "-c", "held = bytearray(100 << 20); import time; time.sleep(600)"]
    )
    emit(Pid(pid=os.getpid(), grandchild=grandchild.pid, held=len(held)))
    time.sleep(600)


def escape() -> None:
    away = subprocess.Popen(["sleep", "6543"], start_new_session=True)
    emit(Started(inner=away.pid))
    time.sleep(600)


def bomb() -> None:
    emit(Pid(pid=os.getpid()))
    for _ in range(200):
        subprocess.Popen(["sleep", "600"], start_new_session=True)
    time.sleep(600)


def fill(folder: str) -> None:
    emit(Pid(pid=os.getpid()))
    for number in range(64):
        (Path(folder) / str(number)).write_bytes(os.urandom(1 << 20))
    time.sleep(600)


def full_disk() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def connect(port: str) -> None:
    connected = False
    with suppress(OSError), socket.create_connection(("127.0.0.1", int(port)), 2):
        connected = True
    emit(Tried(connected=connected, isolation=os.environ.get("SPQ_ISOLATION")))


def reach(paths: str, folder: str) -> None:
    read, listed, written = [], [], []
    for path in json.loads(paths):
        with suppress(OSError):
            Path(path).read_bytes()
            read.append(path)
        with suppress(OSError):
            os.listdir(Path(path).parent)  # noqa: PTH208
            if "private" in path:
                listed.append(path)
    for place in (folder, f"{folder}/../private", "/tmp", "/var/tmp"):
        with suppress(OSError):
            (Path(place) / "canary").write_text("x")
            (Path(place) / "canary").unlink()
            written.append(place)
    emit(
        Tried(
            read=read,
            listed=listed,
            written=written,
            isolation=os.environ.get("SPQ_ISOLATION", ""),
        )
    )


def meddle(file: str, place: str) -> None:
    did = []
    with suppress(OSError):
        os.chmod(file, 0o777)  # noqa: PTH101
        did.append("chmod")
    with suppress(OSError):
        os.utime(file)
        did.append("utime")
    with suppress(OSError):
        socket.socket(socket.AF_UNIX).connect(place)
        did.append("connect")
    with suppress(OSError):
        socket.socketpair()
        did.append("socketpair")
    emit(Tried(did=did, isolation=os.environ.get("SPQ_ISOLATION", "")))


def leave_someone() -> None:
    holder = subprocess.Popen(["sleep", "300"], start_new_session=True)
    emit(Pid(pid=holder.pid))


def hit(pid: str) -> None:
    allowed = False
    with suppress(OSError):
        os.kill(int(pid), 0)
        allowed = True
    emit(Tried(allowed=allowed, isolation=os.environ.get("SPQ_ISOLATION", "")))


def refuse() -> None:
    raise RecipeError("no good")


def unavailable() -> None:
    raise HubUnavailableError("come back later")


def bug() -> None:
    raise ZeroDivisionError("oops")


def crash() -> None:
    os.kill(os.getpid(), 9)


MODES = (
    talk,
    nest,
    endless_line,
    flood,
    sleep,
    hungry,
    escape,
    bomb,
    fill,
    full_disk,
    connect,
    reach,
    hit,
    meddle,
    leave_someone,
    refuse,
    unavailable,
    bug,
    crash,
)


def act(spec: Order) -> None:
    name, *arguments = shlex.split(spec.mode)
    {mode.__name__: mode for mode in MODES}[name](*arguments)


if __name__ == "__main__":
    serve(Order, act)
