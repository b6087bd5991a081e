"""Documentation that cannot go stale unnoticed: links lead somewhere, generated pages are those of the code, nothing lacks a sentence."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from worker.reference.schema import anchor

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/*.md"), *ROOT.glob("benchmarks/*.md")]
)  # fmt: skip
CODE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def headings(page):
    text = CODE.sub("", page.read_text(encoding="utf-8"))
    return {anchor(one.replace("`", "")) for one in HEADING.findall(text)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for link in LINK.findall(CODE.sub("", page.read_text(encoding="utf-8"))):
        if link.startswith(("http://", "https://", "mailto:")):
            continue
        path, _, fragment = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{link}: no such file"
        assert target.is_relative_to(ROOT), f"{link} leaves the project"
        if fragment:
            assert fragment in headings(target), f"{link}: no such heading"


def test_every_page_is_in_the_list_of_pages():
    index = (ROOT / "docs/README.md").read_text(encoding="utf-8")
    for page in (ROOT / "docs").rglob("*.md"):
        name = str(page.relative_to(ROOT / "docs"))
        assert name == "README.md" or f"({name})" in index


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """What `make docs` writes; by a process of its own, as commands keep what they were first asked for."""
    folder = tmp_path_factory.mktemp("docs")
    subprocess.run([sys.executable, "-m", "worker.reference", folder], check=True)
    files = (one for one in folder.rglob("*") if one.is_file())
    return {str(one.relative_to(folder)): one.read_text(encoding="utf-8") for one in files}


def test_the_reference_is_that_of_the_code(written):
    for name, text in written.items():
        kept = (ROOT / "docs" / name).read_text(encoding="utf-8")
        assert kept == text, f"docs/{name} is not what the code says: make docs, and read the diff"


@pytest.mark.parametrize("name", ["recipes", "sweeps", "settings", "api"])
def test_every_key_and_setting_has_a_sentence(written, name):
    rows = re.findall(r"^\| `([^`]+)` \| .* \|  \|$", written[f"reference/{name}.md"], re.MULTILINE)
    assert set(rows) <= {"type", "objective"}
