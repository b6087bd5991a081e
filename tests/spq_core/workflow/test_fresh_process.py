"""What a fresh process knows, and that it ends with whoever asked."""

import os
import subprocess
import sys
import textwrap
import time

import psutil
import pytest

from spq_core.workflow.fresh_process import fresh_process_ready, run_fresh

PROGRAM = """
    import os, signal, sys, time

    def main():
        what = sys.argv[1]
        if what == "tell":
            print(os.getpid(), os.environ.get("CHANGED"), "torch" in sys.modules, sys.argv)
        if what == "raise":
            raise ValueError("it is so")
        if what == "exit":
            sys.exit(3)
        if what == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "wait":
            print(os.getpid(), flush=True)
            time.sleep(600)

    if __name__ == "__main__":
        main()
"""


@pytest.fixture(autouse=True)
def _program(tmp_path, monkeypatch):
    (tmp_path / "some_program.py").write_text(textwrap.dedent(PROGRAM))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)


@pytest.fixture(params=["ready", "new"])
def _either(request):
    """With a process that waits, and without."""
    if request.param == "new":
        yield
        return
    with fresh_process_ready():
        yield


def ask(what, *more):
    return run_fresh("some_program", [what, *more], 60)


@pytest.mark.usefixtures("_either")
def test_a_program_ends_as_it_ends_and_says_what_it_says():
    done = ask("tell", "ümlaut and space", "")
    assert done.returncode == 0
    assert done.stdout.rstrip().endswith("'tell', 'ümlaut and space', '']")
    raised = ask("raise")
    assert raised.returncode == 1
    assert "ValueError: it is so" in raised.stderr
    assert ask("exit").returncode == 3
    assert ask("die").returncode == -9
    assert ask("tell").returncode == 0


def test_it_knows_what_was_imported_and_nothing_that_was_done_since(monkeypatch):
    with fresh_process_ready():
        monkeypatch.setenv("CHANGED", "since")
        first, second = (ask("tell").stdout.split() for _ in range(2))
        assert first[1] == second[1] == "None"
        assert first[2] == str("torch" in sys.modules)
        assert len({first[0], second[0], str(os.getpid())}) == 3


@pytest.mark.usefixtures("_either")
def test_what_takes_too_long_is_gone():
    with pytest.raises(subprocess.TimeoutExpired):
        run_fresh("some_program", ["wait"], 0.5)
    assert ask("tell").returncode == 0


def test_nothing_outlives_whoever_asked(tmp_path):
    script = tmp_path / "asks.py"
    script.write_text(
        "from spq_core.workflow.fresh_process import fresh_process_ready, run_fresh\n"
        "with fresh_process_ready():\n"
        "    print(flush=True)\n"
        "    run_fresh('some_program', ['wait'], 600)\n"
    )
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE) as asking:
        asking.stdout.readline()
        deadline = time.monotonic() + 100
        started = []
        while len(started) < 2 and time.monotonic() < deadline:
            started = psutil.Process(asking.pid).children(recursive=True)
        assert len(started) == 2
        asking.kill()
        # A pipe that one of them held would never end.
        assert asking.stdout.read() == b""
    _, left = psutil.wait_procs(started, timeout=10)
    assert not left


def test_the_end_of_the_block_is_the_end_of_the_process():
    before = set(psutil.Process().children())
    with fresh_process_ready():
        (waiting,) = set(psutil.Process().children()) - before
    assert not psutil.pid_exists(waiting.pid)


def test_who_was_killed_while_it_waited_is_not_missed():
    before = set(psutil.Process().children())
    with fresh_process_ready():
        (waiting,) = set(psutil.Process().children()) - before
        waiting.kill()
        for _ in range(2):
            assert ask("tell").returncode == 0
    assert not psutil.pid_exists(waiting.pid)


def test_a_request_can_be_long():
    with fresh_process_ready():
        long = "x" * 50_000
        assert long in ask("tell", long).stdout
