"""What is vendored is what its README says."""

import gzip
import hashlib
import re
from pathlib import Path

FOLDER = Path("app/dashboard")


def test_the_vendored_file_is_unchanged():
    told = re.search(r"sha256: ([0-9a-f]{64})", (FOLDER / "vendor" / "README.md").read_text())
    found = hashlib.sha256((FOLDER / "vendor" / "preact-htm.js").read_bytes()).hexdigest()
    assert found == told[1]


def test_the_whole_script_is_small_and_no_file_is_long():
    scripts = list(FOLDER.rglob("*.js"))
    assert sum(len(gzip.compress(file.read_bytes())) for file in scripts) < 80_000
    own = [file for file in scripts if file.parent.name != "vendor"]
    assert all(len(file.read_text().splitlines()) <= 200 for file in own)
    assert not any(
        word in file.read_text()
        for file in own
        for word in ("innerHTML", "eval(", "http://", "https://")
    )
