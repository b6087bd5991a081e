"""The table in SECURITY.md names tests that exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROWS = re.findall(
    r"^\| (\d+) \|.*\| (`tests/.*) \|$", (ROOT / "SECURITY.md").read_text(), re.MULTILINE
)


def test_all_attacks_are_there():
    assert [int(number) for number, _ in ROWS] == list(range(1, 26))


@pytest.mark.parametrize(("number", "tests"), ROWS)
def test_its_tests_exist(number, tests):
    found = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", tests)
    assert found, number
    for file, name in found:
        assert f"def {name}" in (ROOT / file).read_text(), (file, name)
