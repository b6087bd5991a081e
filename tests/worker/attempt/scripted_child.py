"""A runner or publisher for tests: a real process that does what a file says, step by step."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path


def write(files: dict[str, str], folder: Path) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def shell(command: str, folder: Path) -> None:
    subprocess.run(command, shell=True, check=True, cwd=folder)


def say(message: dict, _folder: Path) -> None:
    print(json.dumps(message), flush=True)


def touch_and_wait(path: str, _folder: Path) -> None:
    Path(path).touch()
    while Path(path).exists():
        time.sleep(0.02)


def die(_value: object, _folder: Path) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


STEPS = {
    "write": write,
    "leave": write,
    "shell": shell,
    "say": say,
    "touch and wait": touch_and_wait,
    "die": die,
}


def main() -> None:
    spec = json.loads(sys.stdin.readline())
    folder = Path(spec.get("out", ".")).parent
    for step in json.loads(Path(os.environ["SPQ_TEST_SCRIPT"]).read_text()):
        ((what, value),) = step.items()
        STEPS[what](value, Path(spec["leave"]) if what == "leave" else folder)


if __name__ == "__main__":
    main()
