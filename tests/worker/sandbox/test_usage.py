"""How the memory of a run with several processes is counted."""

import subprocess
import sys
import textwrap

from worker.sandbox.usage import Limits, Meter, shared_once, tree_usage

HELD = 100 << 20
PROGRAM = f"""
    import os, signal
    held = bytearray(b"x") * {HELD}
    for _ in range(2):
        if os.fork() == 0:
            signal.pause()
    print(flush=True)
    signal.pause()
"""


def test_what_processes_share_counts_once(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(PROGRAM)],
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as family:
        try:
            family.stdout.readline()
            resident, processes = tree_usage(family.pid)
            assert processes == 3
            assert resident > 3 * HELD
            assert HELD < shared_once(family.pid) < 1.5 * HELD
            few, enough = (
                Meter(Limits(memory_bytes=share * HELD), family.pid, [tmp_path]) for share in (1, 2)
            )
            assert enough.excess() is None
            assert few.excess()["code"] == "out_of_host_memory"
        finally:
            subprocess.run(["pkill", "-KILL", "-s", str(family.pid)], check=True)


def test_who_has_ended_takes_nothing():
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        child.wait()
        assert tree_usage(child.pid) == (0, 0)
        assert shared_once(child.pid) == 0
