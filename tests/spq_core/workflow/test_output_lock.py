"""One run at a time writes an output."""

import subprocess
import sys

import pytest

from spq_core.errors import OutputLockedError
from spq_core.workflow.output_lock import output_lock

HOLD = """
import sys, pathlib
from spq_core.workflow.output_lock import output_lock
with output_lock(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_is_refused_until_the_first_ends(tmp_path):
    out = tmp_path / "deep" / "out"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(out)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(OutputLockedError, match="another run is writing"), output_lock(out):
            pass
    finally:
        holder.kill()
        holder.wait()
        holder.stdin.close()
        holder.stdout.close()
    with output_lock(out):  # a lock of the dead is none
        pass
    assert list(out.parent.iterdir()) == []
