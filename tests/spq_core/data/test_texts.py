import pytest

from spq_core.data.texts import (
    builtin_text,
    find_text,
    non_blank_lines,
    paper_text,
    refuse_shared_lines,
)
from spq_core.errors import CalibrationLeakError, DatasetError

LONG = "a line of text that is long enough to be told from a heading"


def test_builtin_parts_share_no_distinctive_line():
    text = builtin_text()
    assert len(text.evaluation) > 100_000
    refuse_shared_lines(text.calibration.splitlines(), text.evaluation)


def test_a_shared_line_is_refused_and_shown():
    with pytest.raises(CalibrationLeakError, match="1 calibration lines.*a line of text") as caught:
        refuse_shared_lines(["other", f"  {LONG}"], f"x\n{LONG}\ny")
    assert caught.value.shared_lines == 1


def test_short_lines_may_recur():
    refuse_shared_lines([" = Heading = "], " = Heading = \n")


def test_local_text_needs_both_splits(tmp_path):
    (tmp_path / "mine-test.txt").write_text("evaluate")
    with pytest.raises(DatasetError, match="mine-validation.txt"):
        find_text("mine", tmp_path)
    (tmp_path / "mine-valid.raw.txt").write_text("calibrate")
    text = find_text("mine", tmp_path)
    assert (text.calibration, text.evaluation) == ("calibrate", "evaluate")


@pytest.mark.parametrize("name", ["../etc/passwd", "a/b", "", ".hidden"])
def test_names_cannot_leave_the_folder(tmp_path, name):
    with pytest.raises(DatasetError, match="not a dataset name"):
        find_text(name, tmp_path)


def test_lines_as_the_authors_take_them():
    assert non_blank_lines("\n a\n\nb\nc", 2) == [" a", "b"]
    with pytest.raises(DatasetError, match="asks for 4 samples, the text has 3"):
        non_blank_lines("a\nb\nc", 4)
    assert paper_text("\n".join(str(i) for i in range(200))).endswith("\n99")
