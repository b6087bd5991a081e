"""The text in files of many kinds."""

import json

import pytest

from spq_core.data.text_files import read_text
from spq_core.data.texts import local_text
from spq_core.errors import DatasetError

DOCUMENTS = ["The first document.", "The second,\nof two lines."]
JOINED = "\n\n".join(DOCUMENTS)


def lines(field):
    return "\n".join(json.dumps({field: text, "id": 1}) for text in DOCUMENTS)


READABLE = {
    "plain.txt": (JOINED.encode(), JOINED),
    "marked.txt": (b"\xef\xbb\xbf" + JOINED.encode(), JOINED),
    "wide.txt": (JOINED.encode("utf-16"), JOINED),
    "windows.txt": (b"a\r\nb", "a\nb"),
    "lines.jsonl": (lines("text").encode(), JOINED),
    "lines.txt": (lines("text").encode(), JOINED),
    "content.ndjson": (lines("content").encode(), JOINED),
    "list.json": (json.dumps([{"text": text} for text in DOCUMENTS], indent=1).encode(), JOINED),
    "strings.json": (json.dumps(DOCUMENTS).encode(), JOINED),
    "table.csv": (b'id,text\n1,The first document.\n2,"The second,\nof two lines."\n', JOINED),
    "table.tsv": (b"text\tid\nThe first document.\t1\n", DOCUMENTS[0]),
    "array.txt": (json.dumps(DOCUMENTS).encode(), JOINED),
    "pretty.txt": (json.dumps([{"text": text} for text in DOCUMENTS], indent=2).encode(), JOINED),
    "questions.jsonl": (
        b'{"question": "1 + 1?", "answer": "2"}\n{"question": "2 + 2?", "answer": "4"}',
        "Question: 1 + 1?\nAnswer: 2\n\nQuestion: 2 + 2?\nAnswer: 4",
    ),
    "empty-field.jsonl": (b'{"text": "", "content": "a"}\n{"text": "", "content": "b"}', "a\n\nb"),
    "long.csv": (b"text\n" + b"x" * 200_000 + b"\n", "x" * 200_000),
    "braces.txt": (b"{not json}\n{either}", "{not json}\n{either}"),
    "empty.txt": (b"", ""),
}
REFUSED = {
    "fields.jsonl": (lines("sentence").encode(), "has the fields id, sentence.*rename.*'text'"),
    "table.csv": (b"a,b\n1,2\n", "has the fields a, b"),
    "mixed.jsonl": (
        b'{"text": "a"}\n{"title": "b"}',
        "1 of 2 records have no text in the field 'text'",
    ),
    "ragged.csv": (b"id,text\n1,a, b\n", "row 2 has more fields"),
    "quote.csv": (b'id,text\n1,"a\n2,b\n', "not a valid table"),
    "binary.txt": (b"\x00\x01\x02", "not a UTF-8 text file"),
    "latin.txt": (b"caf\xe9", "not a UTF-8 text file"),
    "broken.jsonl": (b'{"text": "a"}\n{"text": ', "not valid JSON"),
    "numbers.json": (b"[1, 2]", "no records with fields"),
}


@pytest.mark.parametrize("name", READABLE)
def test_the_text_is_taken(tmp_path, name):
    raw, wanted = READABLE[name]
    (tmp_path / name).write_bytes(raw)
    assert read_text(tmp_path / name) == wanted


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_text_is_refused_with_what_to_do(tmp_path, name):
    raw, message = REFUSED[name]
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(DatasetError, match=message):
        read_text(tmp_path / name)


def test_a_named_dataset_may_be_json_lines(tmp_path):
    (tmp_path / "mine-test.jsonl").write_text(lines("text"))
    (tmp_path / "mine-valid.csv").write_text("text\nother\n")
    found = local_text("mine", tmp_path)
    assert (found.evaluation, found.calibration) == (JOINED, "other")


def written(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def test_characters_that_json_cut_in_half_are_made_whole_or_replaced(tmp_path):
    whole = json.dumps({"text": "a \U0001f600 b"})
    half = '{"text": "c \\ud83d d"}'
    found = read_text(written(tmp_path, "x.jsonl", f"{whole}\n{half}\n"))
    assert found == "a \U0001f600 b\n\nc \ufffd d"


@pytest.mark.parametrize("mark", [";", "\t"])
def test_tables_of_other_languages_are_read(tmp_path, mark):
    rows = [("id", "text"), ("1", '"one, two; three"'), ("2", "four")]
    path = written(tmp_path, "x.csv", "\n".join(mark.join(row) for row in rows))
    assert read_text(path) == "one, two; three\n\nfour"


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("x.json", '{"text": ["one", "two"]}', "field 'text' that holds list instead of text"),
        ("x.csv", "0,The quick brown fox\n1,jumps\n", "or put a header row above"),
        ("x.csv", 'text\n"one" two"\n', r"line \d: .*double the quotes"),
        ("x.jsonl", '{"text": "a"}\n{"text": \n', r"line 2: '\{\"text\":'"),
    ],
)
def test_what_is_wrong_with_records_is_said_with_its_place(tmp_path, name, text, words):
    with pytest.raises(DatasetError, match=words):
        read_text(written(tmp_path, name, text))
