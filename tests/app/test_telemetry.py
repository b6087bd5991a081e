"""What a process writes: lines for people on a terminal, JSON elsewhere."""

import json
import os
import pty
import subprocess
import sys

PROGRAM = "from app.telemetry import configure_logging, log; configure_logging(); log.info('job_accepted', job_id='job_1')"


def test_elsewhere_than_on_a_terminal_every_line_is_json():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    )
    line = json.loads(done.stderr)
    assert (line["event"], line["job_id"], line["level"]) == ("job_accepted", "job_1", "info")
    assert line["ts"].endswith("Z")


def test_on_a_terminal_lines_are_for_people_and_without_colour_where_that_is_asked_for():
    ours, its = pty.openpty()
    subprocess.run(
        [sys.executable, "-c", PROGRAM], stderr=its, check=True, env=os.environ | {"NO_COLOR": "1"}
    )
    os.close(its)
    told = os.read(ours, 4096).decode()
    os.close(ours)
    assert "job_accepted" in told
    assert "job_id=job_1" in told
    assert "{" not in told
    assert "\x1b" not in told
