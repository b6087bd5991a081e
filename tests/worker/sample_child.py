"""A child program for tests: does what its specification says."""

import os
import subprocess
import sys
import time
from typing import Any

from spq_core.errors import RecipeError
from spq_core.hub.errors import HubUnavailableError
from worker.child import emit, serve


def act(spec: dict[str, Any]) -> None:
    match spec["mode"]:
        case "talk":
            emit("pid", pid=os.getpid())
            print("plain text")
            print('{"json": "but no type"}')
            sys.stderr.write("to stderr\n")
            emit("environment", names=sorted(os.environ), argv=sys.argv)
        case "sleep":
            grandchild = subprocess.Popen(["sleep", "600"])
            emit("pid", pid=os.getpid(), grandchild=grandchild.pid)
            time.sleep(600)
        case "refuse":
            raise RecipeError("no good")
        case "unavailable":
            raise HubUnavailableError("come back later")
        case "bug":
            raise ZeroDivisionError("oops")
        case "crash":
            os.kill(os.getpid(), 9)


if __name__ == "__main__":
    serve(act)
