"""A sweep as a picture."""

import pytest

from spq_core.errors import EvaluationError
from spq_core.sweep.figure import draw_sweep
from tests.spq_core.sweep.test_tables import document, done, row


def test_every_member_that_is_done_is_named_in_the_picture(tmp_path):
    members = [
        done(size=500),
        done(size=400, kl=0.0),
        {"status": "failed", "row": row()},
        done(kl=None),
    ]
    draw_sweep(document(members), tmp_path / "front.svg")
    drawn = (tmp_path / "front.svg").read_text()
    named = [name for name in ("r1", "r2", "r3", "r4") if f"<!-- {name} -->" in drawn]
    assert named == ["r1", "r2"], (
        "one that failed is no result, and one without the figure has no place"
    )


def test_a_sweep_that_has_nothing_yet_can_be_drawn(tmp_path):
    draw_sweep(document([{"status": "waiting"}]), tmp_path / "front.png")
    assert (tmp_path / "front.png").stat().st_size > 1000


def test_what_cannot_be_written_is_said(tmp_path):
    with pytest.raises(EvaluationError, match="written as"):
        draw_sweep(document([]), tmp_path / "front.txt")
