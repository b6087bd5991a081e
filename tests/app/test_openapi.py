"""The API is what its OpenAPI document says: valid, committed, and kept under random requests."""

import json
import re
from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from openapi_spec_validator import validate
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from app.db.migrate import upgrade
from app.http.forms import WORDS
from app.live import stream
from app.openapi import document

COMMITTED = Path(__file__).parents[2] / "docs" / "openapi.json"


def no_bug(_context, response, _case):
    """The only server error is that the Hub does not answer, which it does not here."""
    if response.status_code >= 500:
        assert (response.status_code, response.json()["code"]) == (503, "hub_unavailable")


CHECKS = (no_bug, status_code_conformance, content_type_conformance, response_schema_conformance)
UNREADY = {"/readyz"}  # answers 503 by design where nothing is migrated
EXAMPLES = 25


def test_the_document_is_valid_and_committed():
    found = document()
    validate(found)
    assert found["openapi"].startswith("3.1")
    assert json.loads(COMMITTED.read_text()) == found, (
        "the API changed: make docs, and read the diff"
    )


def operations():
    for path, methods in document()["paths"].items():
        for method, operation in methods.items():
            yield f"{method} {path}", operation


def test_every_operation_says_what_it_is():
    """What a linter of API documents asks for, in the words of this one."""
    names = [operation["operationId"] for _, operation in operations()]
    assert len(names) == len(set(names))
    for where, operation in operations():
        assert operation["operationId"].isidentifier(), where
        for part in ("summary", "description", "tags"):
            assert operation[part], (where, part)
        for one in operation.get("parameters", ()):
            assert one["description"], (where, one["name"])
        assert set("".join(operation["responses"])) & {"2"}, where
        for status, answer in operation["responses"].items():
            assert answer["description"], (where, status)
            if status.startswith(("4", "5")) and where.split()[1] not in UNREADY:
                assert list(answer["content"]) == ["application/problem+json"], (where, status)


def test_no_part_of_the_document_is_without_use():
    found = document()
    used = set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(found)))
    assert used == set(found["components"]["schemas"])


def patterns(part):
    """Every regular expression of a document."""
    if isinstance(part, dict):
        if isinstance(part.get("pattern"), str):
            yield part["pattern"]
        part = list(part.values())
    for one in part if isinstance(part, list) else ():
        yield from patterns(one)


def test_every_pattern_has_words_for_whoever_missed_it():
    found = set(patterns(document()))
    assert len(found) > 5
    assert found <= set(WORDS)


def test_the_examples_of_the_document_are_accepted(api):
    shown = document()["components"]["schemas"]["JobSubmission"]["examples"]
    for body in shown:
        if "path" in body["model"]:
            body["model"]["path"] = "tiny-llama"
        answer = api.client.post("/jobs", json=body, headers=api.headers())
        assert answer.status_code == 202, answer.text


@pytest.fixture
def database_url(tmp_path):
    """One database is enough: requests that go wrong do so before it."""
    url = f"sqlite:///{tmp_path / 'fuzz.db'}"
    upgrade(url)
    return url


def test_random_requests_get_documented_answers(api, monkeypatch):
    monkeypatch.setattr(stream, "LONGEST_STREAM_SECONDS", 0.0)  # one that ends on its own
    known = {"job_id": api.submit()["id"], "sweep_id": _sweep(api)}
    schema = schemathesis.openapi.from_asgi("/openapi.json", api.client.app)
    for result in schema.get_all_operations():
        operation = result.ok()
        fuzz(operation, api.headers(), known)


def _sweep(api):
    body = {"model": {"repo_id": "org/tiny"}, "sweep": "baselines"}
    return api.client.post("/sweeps", json=body, headers=api.headers()).json()["id"]


def fuzz(operation, headers, ids):
    @settings(
        max_examples=EXAMPLES, deadline=None, database=None, phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck), derandomize=True,
    )  # fmt: skip
    @given(case=operation.as_strategy(), known=st.booleans())
    def run(case, known):
        for name in set(ids) & set(case.path_parameters or {}) if known else ():
            case.path_parameters[name] = ids[name]
        case.headers = {
            **{
                name: value
                for name, value in (case.headers or {}).items()
                if name.lower() != "prefer"
            },
            **headers,
        }
        response = case.call()
        case.validate_response(response, checks=CHECKS)

    run()
