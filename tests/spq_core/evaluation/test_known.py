"""Figures that are kept for later runs."""

import json

from spq_core.evaluation.known import Known, digest, drop_oldest

KEY = {"model": "a" * 64, "windows": "b", "length": 32}


def test_what_was_noted_is_found_under_the_same_key_only(tmp_path):
    Known(folder=tmp_path / "own", by="job_1").note("scores", KEY, {"figures": {"kl": 0.1}})
    later = Known(folder=tmp_path / "later", shared=[tmp_path / "own"])
    assert later.find("scores", KEY, "source") == {"figures": {"kl": 0.1}}
    assert later.reused["source"]["by"] == "job_1"
    assert later.find("scores", KEY | {"length": 33}) is None
    assert later.find("answers", KEY) is None
    assert later.find("scores", None) is None
    own = Known(folder=tmp_path / "own")
    assert own.find("scores", KEY, "source") is not None
    assert own.reused == {}, "what the run itself measured has no other origin"


def test_what_cannot_be_read_was_not_measured(tmp_path):
    known = Known(folder=tmp_path)
    file = tmp_path / f"scores-{digest(KEY)}.json"
    for content in ("", "[]", "{", '{"key": 1}', json.dumps({"key": KEY, "document": 1})):
        file.write_text(content)
        assert known.find("scores", KEY) is None
    other = {"key": KEY | {"length": 1}, "document": {"kl": 9.0}, "origin": {}}
    file.write_text(json.dumps(other))
    assert known.find("scores", KEY) is None, "a file under another's name"


def test_only_some_models_figures_are_handed_over(tmp_path):
    known = Known(folder=tmp_path / "own", states_folder=tmp_path / "states")
    known.note("scores", KEY, {"of": "source"})
    known.note("scores", KEY | {"model": "result"}, {"of": "result"})
    known.states_place(KEY).write_bytes(b"1234")
    known.hand_over({KEY["model"]}, tmp_path / "shelf")
    later = Known(shared=[tmp_path / "shelf"])
    assert later.find("scores", KEY) == {"of": "source"}
    assert later.find("scores", KEY | {"model": "result"}) is None
    assert later.states(KEY).read_bytes() == b"1234"


def test_the_oldest_go_when_there_is_too_much(tmp_path):
    import os

    for age, name in enumerate(("new", "older", "oldest")):
        (tmp_path / name).write_bytes(bytes(100))
        os.utime(tmp_path / name, (1e9 - age, 1e9 - age))
    drop_oldest(tmp_path, 250)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["new", "older"]
    drop_oldest(tmp_path / "absent", 0)
