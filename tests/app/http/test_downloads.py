"""Downloads that can be gone on with."""

import pytest

from app.http.downloads import Range, UnsatisfiableRangeError, asked_range


@pytest.mark.parametrize(
    ("header", "wanted"),
    [
        (None, None),
        ("bytes=0-3", Range(0, 4)),
        ("bytes=4-", Range(4, 10)),
        ("bytes=-3", Range(7, 10)),
        ("bytes=-30", Range(0, 10)),
        ("bytes=8-100", Range(8, 10)),
        ("bytes=9-9", Range(9, 10)),
        # what may be answered with the whole file
        ("bytes=0-1,4-5", None),
        ("bytes=5-2", None),
        ("bytes=-", None),
        ("lines=1-2", None),
        ("bytes=a-b", None),
        ("bytes=" + "9" * 30 + "-", None),
    ],
)
def test_what_a_header_asks_for(header, wanted):
    assert asked_range(header, 10) == wanted


@pytest.mark.parametrize(
    ("header", "size"), [("bytes=10-", 10), ("bytes=10-20", 10), ("bytes=0-0", 0), ("bytes=-0", 10)]
)
def test_a_range_behind_the_end_cannot_be_had(header, size):
    with pytest.raises(UnsatisfiableRangeError):
        asked_range(header, size)
