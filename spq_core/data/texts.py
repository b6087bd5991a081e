"""Named texts, each with a part to calibrate on and a part to evaluate on.

Nothing here reaches a network: a text comes from a local folder, or from the standard library.
"""

import hashlib
import re
import sysconfig
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from pydoc_data import topics

from spq_core.data.calibration import Calibration
from spq_core.data.text_files import read_text
from spq_core.errors import CalibrationLeakError, DatasetError, SpqError

BUILTIN = "builtin"
BUILTIN_CODE = "builtin-code"
BUILT_IN = (BUILTIN, BUILTIN_CODE)
HUB_DATASETS = ("wikitext2", "c4", "gsm8k")
"""Names that can be fetched from the Hub."""
CALIBRATION_SPLITS = ("valid", "validation", "train")
EVALUATION_SPLIT = "test"
SUFFIXES = (".raw.txt", ".txt", ".jsonl", ".json", ".csv", ".tsv")
DISTINCTIVE_CHARACTERS = 40
"""Lines at least this long count as the same text when they are equal; headings may recur."""
PAPER_LINES = 100
EVALUATED_EVERY = 4
"""Of what is built in, every fourth part is evaluation text."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,63}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """A corpus with disjoint parts."""

    name: str
    calibration: str
    evaluation: str
    origin: str
    """Where it came from, in words, for the report."""
    mixed: tuple["Text", ...] = ()
    """Others whose calibration parts are mixed into this one's."""
    left_out: tuple[str, ...] = ()
    """Names of those that were to be, and could not be had."""

    @property
    def fingerprint(self) -> str:
        """sha256 over both parts, and those that are mixed in."""
        parts = (self.calibration, self.evaluation, *(one.fingerprint for one in self.mixed))
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def builtin_text() -> Text:
    """English prose that every Python carries: the language reference behind `help()`.

    Every fourth topic is evaluation text; calibration text has no line that is also in it.
    """
    bodies = [body for _, body in sorted(topics.topics.items())]
    evaluation = "\n".join(bodies[::EVALUATED_EVERY])
    seen = set(evaluation.splitlines())
    rest = "\n".join(body for index, body in enumerate(bodies) if index % EVALUATED_EVERY)
    calibration = "\n".join(line for line in rest.splitlines() if not line or line not in seen)
    return Text(
        name=BUILTIN,
        calibration=calibration,
        evaluation=evaluation,
        origin="the Python language reference shipped with CPython (pydoc_data.topics)",
    )


def builtin_code() -> Text:
    """Source code that every Python carries: modules of the standard library; every fourth is evaluation text.

    Raises:
        DatasetError: this Python has its library without sources.
    """
    folder = Path(sysconfig.get_paths()["stdlib"])
    bodies = [path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.py"))]
    if len(bodies) < EVALUATED_EVERY:
        raise DatasetError(f"dataset {BUILTIN_CODE!r}: this Python has no sources of its library")
    evaluation = "\n".join(bodies[::EVALUATED_EVERY])
    seen = {line.strip() for line in evaluation.splitlines()}
    rest = (body for index, body in enumerate(bodies) if index % EVALUATED_EVERY)
    distinct = (
        line
        for line in "\n".join(rest).splitlines()
        if len(line.strip()) < DISTINCTIVE_CHARACTERS or line.strip() not in seen
    )
    return Text(
        name=BUILTIN_CODE,
        calibration="\n".join(distinct),
        evaluation=evaluation,
        origin="the sources of CPython's standard library",
    )


def mixture(settings: Calibration, texts: Mapping[str, Text]) -> Text | None:
    """The main text with the others that there are; None without the main one.

    Args:
        texts: by the name that was asked for; another may stand in its place.
    """
    main = texts.get(settings.dataset)
    if main is None or not settings.mixed_with:
        return main
    others: dict[str, Text] = {}
    for name in settings.mixed_with:
        found = texts.get(name)
        if found is not None and found.name == name != main.name:
            others[name] = found
    missing = tuple(
        name for name in settings.mixed_with if name not in others and name != main.name
    )
    return replace(main, mixed=tuple(others.values()), left_out=missing)


def texts_for(
    calibration: Calibration | None,
    evaluated: Iterable[str],
    find: Callable[[str], Text],
    find_more: Callable[[str], Text] | None = None,
) -> dict[str, Text]:
    """Texts by the name that is asked for: those that are needed, and of those to mix in the ones that there are.

    Args:
        calibration: of a recipe that looks at text.
        find_more: for texts to mix in; `find`, if left out. What it raises leaves a text out.

    Raises:
        SpqError: as `find` does for one that is needed.
    """
    needed = {*evaluated} | ({calibration.dataset} if calibration else set())
    found = {name: find(name) for name in sorted(needed)}
    for name in calibration.mixed_with if calibration else ():
        with suppress(SpqError):
            found[name] = found[name] if name in found else (find_more or find)(name)
    return found


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
    if name in BUILT_IN or name in HUB_DATASETS:
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
    if name == BUILTIN_CODE:
        return builtin_code()
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
