"""The text in a file, whatever people keep text in: plain, JSON, JSON lines, CSV. Free of torch."""

import csv
import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from spq_core.errors import DatasetError

TEXT_FIELDS = ("text", "content", "document", "article", "body", "page", "passage")
JSON_SUFFIXES = frozenset({".json", ".jsonl", ".ndjson"})
DELIMITERS = {".csv": ",", ".tsv": "\t"}
MOST_FIELD_CHARACTERS = 1 << 30
"""Of a table's field; Python's own limit is a short document."""
SHOWN_CHARACTERS, SHOWN_FIELDS = 40, 8
LOOKED_AT = 3
"""First lines of a file without a telling name: all of them JSON objects, and the file is JSON lines."""
MARKS = {
    b"\xef\xbb\xbf": "utf-8-sig",
    b"\xff\xfe\x00\x00": "utf-32",
    b"\x00\x00\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}
"""Byte order marks, longer ones before those that they begin with."""


def read_text(path: Path) -> str:
    """Return a file's text; documents of one with records are joined by blank lines.

    Raises:
        DatasetError: it is no text, or has no field that is one.
    """
    text = _decoded(path)
    suffix = path.suffix.lower()
    if suffix in DELIMITERS:
        return _joined(path, _rows(path, text, _delimiter(text, DELIMITERS[suffix])), is_table=True)
    records = _json_records(path, text, told=suffix in JSON_SUFFIXES)
    return text if records is None else _whole(_joined(path, records))


def _whole(text: str) -> str:
    """Text whose halves of characters that JSON escaped are together, and without those left alone."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _delimiter(text: str, usual: str) -> str:
    """What stands between the names of a table's header: spreadsheets of many languages write semicolons."""
    header = text.partition("\n")[0]
    found = [one for one in (usual, ";", "\t", ",") if one in header]
    return found[0] if found else usual


def _decoded(path: Path) -> str:
    raw = path.read_bytes()
    encoding = next((name for mark, name in MARKS.items() if raw.startswith(mark)), "utf-8")
    try:
        text = raw.decode(encoding)
    except UnicodeError:
        text = "\0"
    if "\0" in text:
        raise DatasetError(
            f"{path.name} is not a UTF-8 text file; convert it, or give plain text, JSON lines or CSV"
        )
    return text.replace("\r\n", "\n")


def _json_records(path: Path, text: str, *, told: bool) -> list[Any] | None:
    """The records of JSON text; None where the text is no JSON."""
    lines = [line for line in text.split("\n") if line.strip()]
    if not lines:
        return None
    told = told or (text.lstrip()[:1] in {"[", "{"} and _is_json(text))
    if not told and not all(_is_object(line) for line in lines[:LOOKED_AT]):
        return None
    try:
        return [json.loads(line) for line in lines]
    except (ValueError, RecursionError):
        pass
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError):
        if not told and not _is_object(lines[0]):
            return None
        raise DatasetError(
            f"{path.name} is not valid JSON, and not JSON lines{_first_broken(text)}; one object a line is expected"
        ) from None
    return whole if isinstance(whole, list) else [whole]


def _first_broken(text: str) -> str:
    """Where the first line is that is no JSON, if the one before it is."""
    lines = text.split("\n")
    for number, line in enumerate(lines, start=1):
        if line.strip() and not _is_object(line):
            return f" (line {number}: {line.strip()[:40]!r})" if number > 1 else ""
    return ""


def _is_json(text: str) -> bool:
    try:
        return isinstance(json.loads(text), list | dict)
    except (ValueError, RecursionError):
        return False


def _why_no_text(
    objects: Iterable[Mapping[str, Any]], fields: Iterable[str], *, is_table: bool
) -> str:
    """What is wrong with records of which no field is taken for text."""
    if not fields:
        return "has no records with fields; write one object a line, with the text in 'text'"
    named = next((name for name in TEXT_FIELDS if name in fields), None)
    if named is not None:
        held = next((type(one[named]).__name__ for one in objects if named in one), "nothing")
        return f"has a field {named!r} that holds {held} instead of text; give each text a record of its own"
    shown = ", ".join(name[:SHOWN_CHARACTERS] for name in sorted(fields)[:SHOWN_FIELDS])
    header = ", or put a header row above if that is the first text" if is_table else ""
    return (
        f"has the fields {shown}, none of which is known as text; rename the one to score to 'text'{header}, or "
        "write it to a plain text file"
    )


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _rows(path: Path, text: str, delimiter: str) -> list[dict[str, Any]]:
    """Rows of a table by their header."""
    csv.field_size_limit(MOST_FIELD_CHARACTERS)
    reader = csv.DictReader(io.StringIO(text), delimiter=delimiter, strict=True)
    rows = []
    try:
        for row in reader:
            if None in row:
                raise DatasetError(
                    f"{path.name}: row {reader.line_num} has more fields than the header; put texts with a "
                    f"{delimiter!r} in them into double quotes"
                )
            rows.append(dict(row))
    except csv.Error as error:
        raise DatasetError(
            f"{path.name} is not a valid table: line {reader.line_num}: {error}; double the quotes inside of "
            "quoted texts, and close each"
        ) from None
    return rows


def _joined(path: Path, records: Iterable[Any], *, is_table: bool = False) -> str:
    """The records' texts; every record must have the same text field, or be a text."""
    found = list(records)
    if len(found) == 1 and isinstance(found[0], list):
        found = found[0]
    if found and all(isinstance(record, str) for record in found):
        return "\n\n".join(found)
    objects = [record for record in found if isinstance(record, Mapping)]
    fields = {str(key) for record in objects[:LOOKED_AT] for key in record}
    if all(_is_question(record) for record in objects) and objects:
        return "\n\n".join(
            f"Question: {record['question']}\nAnswer: {record['answer']}" for record in objects
        )
    field = next(
        (name for name in TEXT_FIELDS if name in fields and _has_text(objects, name)), None
    )
    if not objects or field is None:
        raise DatasetError(f"{path.name} {_why_no_text(objects, fields, is_table=is_table)}")
    texts = [record[field] for record in objects if isinstance(record.get(field), str)]
    if len(texts) < len(found):
        raise DatasetError(
            f"{path.name}: {len(found) - len(texts)} of {len(found)} records have no text in the field {field!r}; "
            "remove them, or fill it"
        )
    return "\n\n".join(texts)


def _is_question(record: Mapping[str, Any]) -> bool:
    """Whether it is a question with its answer, as GSM8K has them, and no text besides."""
    both = all(isinstance(record.get(name), str) for name in ("question", "answer"))
    return both and not any(name in record for name in TEXT_FIELDS)


def _has_text(records: Iterable[Mapping[str, Any]], field: str) -> bool:
    values = (record.get(field) for record in records)
    return any(isinstance(value, str) and value.strip() for value in values)
