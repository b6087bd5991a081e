"""Every route, from the API's own document: who may see what."""

import re

import pytest

from app.db.attempts import Attempt, FinishedFile, claim
from app.openapi import document

PUBLIC = {"/livez", "/readyz", "/metrics", "/recipes", "/recipes/{name}", "/schemas/recipe-v1.json"}
ROUTES = [
    (method, path) for path, methods in document()["paths"].items() for method in methods
]  # fmt: skip
CHANGING = [
    (method, path) for method, path in ROUTES
    if method in ("post", "patch", "delete") and path not in {"/estimates", "/session", "/session/codes"}
]  # fmt: skip
OF_ONE_TENANT = [
    (method, path) for method, path in ROUTES if re.search(r"\{(job|delivery|sweep)_id\}", path)
]

SIGNING = {("post", "/session"), ("delete", "/session")}
"""Which ask for a key, or end what one began."""
PREFIXES = {"job": "job", "delivery": "msg", "sweep": "swp"}


@pytest.fixture
def database_url(sqlite_url):
    """One database is enough: tenants are kept apart by queries that both share."""
    return sqlite_url


@pytest.fixture
def finished(api):
    """Alice's job with all there can be: events, logs, figures, a file, a webhook message."""
    job = api.submit(webhook={"url": "https://example.com/hook"}, labels={"secret": "canary"})
    attempt = Attempt(api.database, claim(api.database, job["id"], "w", 60))
    attempt.log(["canary"])
    (api.artifact_dir / job["id"]).mkdir(parents=True)
    (api.artifact_dir / job["id"] / "config.json").write_text("canary")
    attempt.succeed(
        result={"canary": 1}, layers=[], metrics=[],
        files=[FinishedFile(path="config.json", bytes=6, sha256="0" * 64)],
    )  # fmt: skip
    message = api.client.get("/webhook_deliveries", headers=api.headers()).json()["data"][0]
    sweep = {"model": {"repo_id": "org/canary"}, "sweep": "baselines"}
    swept = api.client.post("/sweeps", json=sweep, headers=api.headers()).json()
    return {
        "job_id": job["id"],
        "delivery_id": message["id"],
        "path": "config.json",
        "sweep_id": swept["id"],
    }


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_only_a_few_routes_need_no_key(api, method, path):
    nobody = "0" * 32
    url = path.format(
        job_id=f"job_{nobody}", sweep_id=f"swp_{nobody}", delivery_id="m", path="p", name="int8"
    )
    answer = api.client.request(method, url, json={})
    if (method, path) in SIGNING:
        assert answer.status_code in {403, 422}, answer.text
    else:
        assert (answer.status_code == 401) == (path not in PUBLIC), answer.text


@pytest.mark.parametrize(("method", "path"), OF_ONE_TENANT)
def test_what_is_another_tenants_does_not_exist(api, finished, method, path):
    url = path.format(**finished)
    body = {"labels": {}} if method == "patch" else None
    theirs = api.client.request(method, url, headers=api.headers("mallory"), json=body)
    made_up = {f"{name}_id": f"{short}_{'f' * 32}" for name, short in PREFIXES.items()}
    nothing = api.client.request(
        method, path.format(**finished | made_up), headers=api.headers("mallory"), json=body
    )
    assert theirs.status_code == nothing.status_code == 404
    assert "canary" not in theirs.text
    assert re.sub(r"'.*?'|req_\w+", "", theirs.text) == re.sub(r"'.*?'|req_\w+", "", nothing.text)
    assert api.client.get(f"/jobs/{finished['job_id']}", headers=api.headers()).status_code == 200


def test_lists_show_a_tenants_own(api, finished):
    for path in ("/jobs", "/webhook_deliveries", "/sweeps"):
        for query in (
            "",
            "?status=succeeded",
            "?label.secret=canary",
            f"?job_id={finished['job_id']}",
            f"?sweep={finished['sweep_id']}",
        ):
            page = api.client.get(path + query, headers=api.headers("mallory")).json()
            assert page.get("data", []) == [], "nothing, or a refusal"
    cursor = api.client.get(
        f"/webhook_deliveries?after={finished['delivery_id']}", headers=api.headers("mallory")
    )
    assert cursor.status_code == 404


@pytest.mark.parametrize(("method", "path"), CHANGING)
def test_a_key_that_may_only_read_changes_nothing(api, finished, method, path):
    answer = api.client.request(
        method, path.format(**finished), json={"model": {"repo_id": "a/b"}},
        headers=api.headers(scopes=("jobs:read",)),
    )  # fmt: skip
    assert answer.status_code == 403
    assert answer.json()["code"] == "permission_denied"
