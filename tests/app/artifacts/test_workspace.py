import pytest

from app.artifacts.workspace import FOLDER, take_over
from app.domain.errors import FencedError

JOB = "job_" + "0" * 32


def test_a_new_attempt_takes_what_the_newest_before_it_left(tmp_path):
    (take_over(tmp_path, JOB, 1) / "state").write_text("1")
    second = take_over(tmp_path, JOB, 2)
    assert (second / "state").read_text() == "1"
    assert [path.name for path in (tmp_path / FOLDER).iterdir()] == [f"{JOB}.2"]


def test_an_attempt_that_wakes_up_late_takes_nothing_from_its_successor(tmp_path):
    (take_over(tmp_path, JOB, 2) / "state").write_text("2")
    with pytest.raises(FencedError):
        take_over(tmp_path, JOB, 1)
    assert (tmp_path / FOLDER / f"{JOB}.2" / "state").read_text() == "2"
