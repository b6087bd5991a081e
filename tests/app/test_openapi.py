"""The API is what its OpenAPI document says: valid, committed, and kept under random requests."""

import json
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
        "the API changed: make openapi, and read the diff"
    )


def test_every_operation_is_named_once_and_documents_its_errors():
    names = []
    for path, methods in document()["paths"].items():
        for method, operation in methods.items():
            names.append(operation["operationId"])
            assert operation["description"] or operation["summary"], (method, path)
            for status, answer in operation["responses"].items():
                if status.startswith(("4", "5")) and path not in UNREADY:
                    assert "application/problem+json" in answer["content"], (method, path, status)
    assert len(names) == len(set(names))


@pytest.fixture
def database_url(tmp_path):
    """One database is enough: requests that go wrong do so before it."""
    url = f"sqlite:///{tmp_path / 'fuzz.db'}"
    upgrade(url)
    return url


def test_random_requests_get_documented_answers(api):
    job = api.submit()
    schema = schemathesis.openapi.from_asgi("/openapi.json", api.client.app)
    for result in schema.get_all_operations():
        operation = result.ok()
        fuzz(operation, api.headers(), job["id"])


def fuzz(operation, headers, job_id):
    @settings(
        max_examples=EXAMPLES, deadline=None, database=None, phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck), derandomize=True,
    )  # fmt: skip
    @given(case=operation.as_strategy(), known=st.booleans())
    def run(case, known):
        if known and "job_id" in (case.path_parameters or {}):
            case.path_parameters["job_id"] = job_id
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
