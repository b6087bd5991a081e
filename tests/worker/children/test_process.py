"""Child programs under their supervisor's hand."""

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from tests.e2e.conftest import wait_until
from tests.worker.sample_child import Environment, Order, Pid, Started, Tried
from worker.children.messages import Failed
from worker.children.process import MAX_LINE, ChildProgram
from worker.errors import (
    CancelRequestedError,
    ChildFailedError,
    ChildRetryError,
    DrainRequestedError,
    LeaseLostError,
)
from worker.presence import isolation
from worker.sandbox.usage import Limits

SAID = (Pid, Environment, Started, Tried, Failed)


TESTS = Path(__file__).parents[2]


class Pulse:
    """What a heartbeat tells a supervisor."""

    def __init__(self):
        self.lost, self.canceled, self.overdue = (threading.Event() for _ in range(3))

    def overran(self):
        return False


def follow(
    mode,
    tmp_path,
    on_message=lambda _message: None,
    pulse=None,
    stall=60.0,
    stopping=None,
    reads=(),
    **limits,
):
    program = ChildProgram(
        "tests.worker.sample_child", {"EXTRA": "1"}, stall, 0.2, says=SAID, **limits
    )
    messages, texts = [], []

    def note(message):
        messages.append(message)
        on_message(message)

    with program.started(Order(mode=mode), tmp_path, reads=[TESTS, *reads]) as child:
        child.follow(pulse or Pulse(), note, texts.append, stopping or threading.Event())
    return messages, texts


def test_messages_and_text_are_told_apart(tmp_path):
    messages, texts = follow("talk", tmp_path)
    assert [message.type for message in messages] == ["pid", "environment"]
    assert set(texts) == {
        "plain text", '{"json": "but no type"}', '{"type": "published", "commit": "forged"}', "to stderr",
    }  # fmt: skip


def test_nesting_that_no_parser_takes_is_text(tmp_path):
    _, texts = follow("nest", tmp_path)
    assert texts == ["[" * 200_000]


def test_a_line_without_end_is_cut_and_takes_no_memory_here(tmp_path):
    before = psutil.Process().memory_info().rss
    most = before

    def look(_message):
        nonlocal most
        most = max(most, psutil.Process().memory_info().rss)

    messages, texts = follow("endless_line", tmp_path, look)
    assert [message.type for message in messages] == ["pid", "started"]
    assert [len(text) for text in texts] == [MAX_LINE]
    assert most - before < 100 << 20, "of 400 MiB that the child wrote"


def test_a_child_that_floods_its_output_can_be_ended(tmp_path):
    pulse = Pulse()
    with pytest.raises(CancelRequestedError):
        follow("flood", tmp_path, lambda _message: pulse.canceled.set(), pulse)


def test_a_child_inherits_no_secret(tmp_path, monkeypatch):
    secrets = (
        "SPQ_HUB_TOKEN",
        "HF_TOKEN",
        "SPQ_DATABASE_URL",
        "SPQ_BROKER_URL",
        "AWS_SECRET_ACCESS_KEY",
    )
    for name in secrets:
        monkeypatch.setenv(name, "canary")
    messages, _ = follow("talk", tmp_path)
    names = messages[1].names
    assert not set(secrets) & set(names)
    assert {"EXTRA", "PATH", "OMP_WAIT_POLICY"} <= set(names)
    assert "canary" not in str(messages[1].argv)


@pytest.mark.parametrize(
    ("mode", "error", "code"),
    [
        ("refuse", ChildFailedError, "invalid_recipe"),
        ("bug", ChildFailedError, "internal"),
        ("unavailable", ChildRetryError, "hub_unavailable"),
        ("crash", ChildRetryError, "runner_crashed"),
        ("full_disk", ChildRetryError, "insufficient_disk"),
    ],
)
def test_how_a_child_ended_decides_what_happens_next(tmp_path, mode, error, code):
    with pytest.raises(error) as caught:
        follow(mode, tmp_path)
    assert code in str(caught.value.args)


@pytest.mark.parametrize(
    ("flag", "error"),
    [
        ("lost", LeaseLostError),
        ("canceled", CancelRequestedError),
        ("overdue", ChildFailedError),
    ],
)
def test_the_heartbeat_ends_the_whole_group(tmp_path, flag, error):
    pulse, pids = Pulse(), []

    def stop(message):
        pids.extend([message.pid, message.grandchild])
        getattr(pulse, flag).set()

    with pytest.raises(error):
        follow("sleep", tmp_path, stop, pulse)
    wait_until(
        lambda: (
            not any(
                psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" for pid in pids
            )
        ),
        5,
        "group gone",
    )


def test_a_worker_that_stops_ends_its_child(tmp_path):
    stopping = threading.Event()
    with pytest.raises(DrainRequestedError):
        follow("sleep", tmp_path, lambda _message: stopping.set(), stopping=stopping)


def test_a_child_that_takes_too_much_memory_is_killed_with_what_it_started(tmp_path):
    messages = []
    with pytest.raises(ChildFailedError) as failed:
        follow("hungry", tmp_path, messages.append, limits=Limits(memory_bytes=200 << 20))
    assert failed.value.error["code"] == "out_of_host_memory"
    pids = [messages[0].pid, messages[0].grandchild]
    wait_until(lambda: not any(map(psutil.pid_exists, pids)), 5, "group gone")
    follow("talk", tmp_path, limits=Limits(memory_bytes=200 << 20))


def test_an_isolated_child_reaches_no_network(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        mode = f"connect {server.getsockname()[1]}"
        open_to_all, _ = follow(mode, tmp_path)
        alone, _ = follow(mode, tmp_path, isolated=True)
    assert open_to_all[0].connected
    if not {"network", "tcp"} & set(alone[0].isolation.split(",")):
        pytest.skip("this kernel lets this user give up neither its network nor TCP")
    assert not alone[0].connected


def test_an_isolated_child_reads_and_writes_only_what_it_was_given(tmp_path):
    """Not the service's own files beside its folder, nor the environment of its supervisor."""
    own, given, private = (tmp_path / name for name in ("own", "given", "private"))
    for folder in (own, given, private):
        folder.mkdir()
    (given / "model").write_text("weights")
    (private / "secret-keys").write_text("canary")
    paths = [given / "model", private / "secret-keys", f"/proc/{os.getpid()}/environ"]
    home = own / "sample_child"
    mode = shlex.join(["reach", json.dumps([str(path) for path in paths]), str(home)])
    found, _ = follow(mode, own, reads=[given], isolated=True)
    (told,) = found
    if "files" not in told.isolation.split(","):
        pytest.skip("this kernel has no Landlock")
    assert told.read == [str(given / "model")]
    assert told.listed == []
    assert told.written == [str(home)]
    free, _ = follow(mode, own, reads=[given])
    assert free[0].read == [str(path) for path in paths], "it is Landlock that keeps it from them"


def test_an_isolated_child_speaks_to_no_socket_and_changes_no_modes(tmp_path):
    """Landlock lets it do both, to files that it cannot open."""
    private = tmp_path / "database"
    private.write_text("x")
    private.chmod(0o600)
    place = tmp_path / "broker.sock"
    with socket.socket(socket.AF_UNIX) as broker:
        broker.bind(str(place))
        broker.listen()
        mode = shlex.join(["meddle", str(private), str(place)])
        apart, _ = follow(mode, tmp_path, isolated=True)
        free, _ = follow(mode, tmp_path)
    assert set(free[0].did) == {"chmod", "utime", "connect", "socketpair"}
    if "calls" not in apart[0].isolation.split(","):
        pytest.skip("this kernel or processor has no filter of ours")
    assert apart[0].did == ["socketpair"]


def test_what_one_child_leaves_at_home_no_other_runs(tmp_path):
    """Python imports usercustomize from the home of whoever starts it; the publisher has the Hub's token."""
    sign = tmp_path / "sign"
    for home in (tmp_path, tmp_path / "sample_child"):
        version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
        packages = home / ".local" / "lib" / version / "site-packages"
        packages.mkdir(parents=True)
        (packages / "usercustomize.py").write_text(f"open({str(sign)!r}, 'w').close()")
    messages, _ = follow("talk", tmp_path)
    assert "PYTHONNOUSERSITE" in messages[1].names
    assert not sign.exists()
    runner, publisher = (
        ChildProgram(f"worker.{name}", {}, 1, 1) for name in ("runner", "publisher")
    )
    assert runner.home(tmp_path) != publisher.home(tmp_path)


def test_a_pipe_that_somebody_else_holds_is_not_waited_for(tmp_path):
    begun = time.monotonic()
    messages, _ = follow("leave_someone", tmp_path)
    assert time.monotonic() - begun < 60
    os.kill(messages[0].pid, signal.SIGKILL)


def test_no_isolated_child_signals_its_supervisor(tmp_path):
    """It could stop the service otherwise, as the same user runs both."""
    told, _ = follow(f"hit {os.getpid()}", tmp_path, isolated=True)
    if "processes" not in told[0].isolation:
        pytest.skip("this kernel does not let this user make a namespace of process ids")
    assert not told[0].allowed


@pytest.mark.parametrize("start", ["hidden", "plain"])
def test_other_processes_of_a_user_cannot_read_what_hides(tmp_path, start):
    """As uid 65534: root may read everything."""
    if os.getuid() != 0:
        pytest.skip("only root can become somebody else")
    code = (
        "import ctypes, os, time; from app.privacy import PR_SET_DUMPABLE, hide_process\n"
        "os.setgid(65534); os.setuid(65534); ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)\n"
    )  # the kernel hides whoever changes its user
    code += "hide_process()\n" if start == "hidden" else ""
    secretive = subprocess.Popen(
        [sys.executable, "-c", code + "print('ready', flush=True); time.sleep(600)"],
        env={**os.environ, "CANARY": "x"}, stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert secretive.stdout.readline() == b"ready\n"
        reader = subprocess.run(
            ["cat", f"/proc/{secretive.pid}/environ"], user=65534, group=65534, capture_output=True,
            check=False,
        )  # fmt: skip
        assert (b"CANARY" in reader.stdout) == (start == "plain")
    finally:
        secretive.kill()
        secretive.communicate()


def test_no_process_of_an_isolated_child_outlives_it(tmp_path):
    """Not one that left its process group and session either."""
    canceling = Pulse()

    def started(_message):
        wait_until(lambda: strays("6543"), 5, "it runs")
        canceling.canceled.set()

    with pytest.raises(CancelRequestedError):
        follow("escape", tmp_path, started, canceling, isolated=True)
    left = strays("6543")
    for process in left:
        process.kill()
    if left and "processes" not in isolation():
        pytest.skip("this kernel does not let this user make a namespace of processes")
    assert not left


def strays(seconds):
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if process.info["cmdline"] == ["sleep", seconds]
    ]


@pytest.mark.parametrize(
    ("mode", "limits", "code"),
    [
        ("bomb", {"processes": 50}, "too_many_processes"),
        ("fill {tmp}/sample_child", {"disk_bytes": 32 << 20}, "disk_quota_exceeded"),
    ],
)
def test_a_child_that_takes_too_much_is_killed(tmp_path, monkeypatch, mode, limits, code):
    monkeypatch.setattr("worker.sandbox.usage.DISK_LOOK_SECONDS", 0.5)
    with pytest.raises(ChildFailedError) as failed:
        follow(mode.format(tmp=tmp_path), tmp_path, limits=Limits(**limits), isolated=True)
    assert failed.value.error["code"] == code


def test_a_silent_child_is_taken_for_dead(tmp_path):
    with pytest.raises(ChildRetryError, match="stalled"):
        follow("sleep", tmp_path, stall=2.0)


def test_a_child_dies_with_its_supervisor():
    """Even while it computes and writes nothing."""
    script = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-m', 'tests.worker.sample_child'], stdin=-1, text=True, start_new_session=True)\n"
        'child.stdin.write(\'{"mode": "sleep"}\\n\'); child.stdin.flush()\n'
        "time.sleep(600)\n"
    )
    supervisor = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    pid = json.loads(supervisor.stdout.readline())["pid"]
    assert psutil.pid_exists(pid)
    os.kill(supervisor.pid, signal.SIGKILL)
    supervisor.wait()
    supervisor.stdout.close()
    wait_until(
        lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == "zombie",
        5,
        "child gone",
    )
