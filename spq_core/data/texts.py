"""Named texts, each with a part to calibrate on and a part to evaluate on.

Nothing here reaches a network: a text comes from a local folder, or from the standard library.
"""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from pydoc_data import topics

from spq_core.data.text_files import read_text
from spq_core.errors import CalibrationLeakError, DatasetError

BUILTIN = "builtin"
HUB_DATASETS = ("wikitext2", "c4")
"""Names that can be fetched from the Hub."""
CALIBRATION_SPLITS = ("valid", "validation", "train")
EVALUATION_SPLIT = "test"
SUFFIXES = (".raw.txt", ".txt", ".jsonl", ".json", ".csv", ".tsv")
DISTINCTIVE_CHARACTERS = 40
"""Lines at least this long count as the same text when they are equal; headings may recur."""
PAPER_LINES = 100
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,63}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """A corpus with disjoint parts."""

    name: str
    calibration: str
    evaluation: str
    origin: str
    """Where it came from, in words, for the report."""

    @property
    def fingerprint(self) -> str:
        """sha256 over both parts."""
        parts = (self.calibration, self.evaluation)
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def builtin_text() -> Text:
    """English prose that every Python carries: the language reference behind `help()`.

    Every fourth topic is evaluation text; calibration text has no line that is also in it.
    """
    bodies = [body for _, body in sorted(topics.topics.items())]
    evaluation = "\n".join(bodies[::4])
    seen = set(evaluation.splitlines())
    rest = "\n".join(body for index, body in enumerate(bodies) if index % 4)
    calibration = "\n".join(line for line in rest.splitlines() if not line or line not in seen)
    return Text(
        name=BUILTIN,
        calibration=calibration,
        evaluation=evaluation,
        origin="the Python language reference shipped with CPython (pydoc_data.topics)",
    )


def local_text(name: str, folder: Path) -> Text:
    """Read `<name>-test.txt` and `<name>-valid.txt` (or -validation, -train; .raw.txt, .jsonl, .csv) of a folder.

    Raises:
        DatasetError: naming the files looked for.
    """
    if not NAME.fullmatch(name):
        raise DatasetError(f"{name!r} is not a dataset name")
    evaluation = _first_file(folder, name, (EVALUATION_SPLIT,))
    calibration = _first_file(folder, name, CALIBRATION_SPLITS)
    if evaluation is None or calibration is None:
        missing = "test" if evaluation is None else "validation"
        raise DatasetError(
            f"dataset {name!r}: the data folder has no {missing} split "
            f"({name}-{missing}.txt); put the file there, or name the dataset {BUILTIN!r}"
        )
    return Text(
        name=name,
        calibration=read_text(calibration),
        evaluation=read_text(evaluation),
        origin=f"local files {calibration.name} and {evaluation.name}",
    )


def is_known(name: str, folder: Path | None) -> bool:
    """Whether a dataset of that name can be had: built in, in `folder`, or on the Hub."""
    if name == BUILTIN or name in HUB_DATASETS:
        return True
    try:
        find_text(name, folder)
    except DatasetError:
        return False
    return True


def find_text(name: str, folder: Path | None) -> Text:
    """Return the named text from `folder`, or the built-in one when that is what is named."""
    if name == BUILTIN:
        return builtin_text()
    if folder is None:
        raise DatasetError(f"dataset {name!r} needs a data folder; none is set")
    return local_text(name, folder)


def refuse_shared_lines(calibration: Iterable[str], evaluation: str) -> None:
    """Make sure that no distinctive calibration line is a line of the evaluation text.

    Raises:
        CalibrationLeakError: with the number of shared lines and one of them.
    """
    lines = {line.strip() for sample in calibration for line in sample.splitlines()}
    known = {line.strip() for line in evaluation.splitlines()}
    shared = sorted(line for line in lines & known if len(line) >= DISTINCTIVE_CHARACTERS)
    if shared:
        raise CalibrationLeakError(len(shared), shared[0][:60])


def held_out(text: Text) -> tuple[Text, str]:
    """Set the last tenth of the calibration lines aside: the text without them, and they."""
    lines = text.calibration.split("\n")
    kept = len(lines) - len(lines) // 10
    return replace(text, calibration="\n".join(lines[:kept])), "\n".join(lines[kept:])


def paper_text(text: str) -> str:
    """The text the SPQ authors score: its first 100 lines, joined by newlines."""
    return "\n".join(text.split("\n")[:PAPER_LINES])


def non_blank_lines(text: str, count: int, *, fewer: bool = False) -> list[str]:
    """The first `count` lines that are not blank.

    Args:
        fewer: take all there are, if there are not so many.

    Raises:
        DatasetError: there are fewer.
    """
    lines = [line for line in text.split("\n") if line.strip()][:count]
    if len(lines) < count and not (fewer and lines):
        raise DatasetError(
            f"calibration asks for {count} samples, the text has {len(lines)} non-blank lines"
        )
    return lines


def _first_file(folder: Path, name: str, splits: tuple[str, ...]) -> Path | None:
    candidates = (folder / f"{name}-{split}{suffix}" for split in splits for suffix in SUFFIXES)
    return next((path for path in candidates if path.is_file()), None)
