"""A runner opens untrusted models: what it says is a message of its program, whole and in range, or text."""

import json

import pytest

from worker.children.messages import OF_PUBLISHER, OF_RUNNER, FetchSpec, Progressed
from worker.children.process import _parse

PHASE = {"kind": "compressing", "id": "pass-1", "title": "svd (pass 1/1)"}
PROGRESS = {"type": "progress", "phase": PHASE, "done": 1, "total": 2, "unit": "blocks"}
FILE = {"bytes": 1, "sha256": "0" * 64}


def test_a_message_says_what_it_said():
    message = _parse(json.dumps(PROGRESS | {"phase_left": 3.5}), OF_RUNNER)
    assert isinstance(message, Progressed)
    assert (message.phase.title, message.done, message.phase_left) == ("svd (pass 1/1)", 1, 3.5)


@pytest.mark.parametrize(
    "line",
    [
        PROGRESS | {"done": -1},
        PROGRESS | {"done": "many"},
        PROGRESS | {"phase": "compressing"},
        PROGRESS | {"phase": PHASE | {"kind": "a kind of its own"}},
        PROGRESS | {"phase": PHASE | {"title": "x" * 1000}},
        PROGRESS | {"run_left": -1.0},
        {"type": "result", "document": [], "files": {}},
        {"type": "result", "document": {}, "files": {"a": FILE | {"sha256": "../.."}}},
        {"type": "published", "repo_id": "me/mine", "commit": "0", "url": "https://x"},
        {"type": "error", "code": "internal", "retryable": True},
        {"type": ["progress"]},
        [PROGRESS],
        7,
    ],
)
def test_what_is_no_message_of_the_program_is_text(line):
    assert _parse(json.dumps(line), OF_RUNNER) is None


def test_only_the_publisher_may_say_that_something_is_published():
    said = json.dumps({"type": "published", "repo_id": "me/x", "commit": "0", "url": "https://x"})
    assert _parse(said, OF_RUNNER) is None
    assert _parse(said, OF_PUBLISHER) is not None


def test_a_specification_does_not_show_its_token():
    spec = FetchSpec(
        endpoint=None, token="hf_canary", job_id="j", repo_id=None, revision="main", recipe={},
        model_folder="m", output=None, texts=(), text_folder="t", max_bytes=1,
    )  # fmt: skip
    assert "canary" not in f"{spec!r} {spec}"
    assert json.loads(spec.model_dump_json())["token"] == "hf_canary"
