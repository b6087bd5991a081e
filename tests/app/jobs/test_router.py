"""The jobs API as a client sees it, on Postgres and on SQLite."""

import base64
import json
import re
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import select, update

from app.db.attempts import Attempt, FinishedFile, LeaseReply, claim
from app.db.keys import find_principal
from app.db.models import IdempotentAnswer, Job, OutboxMessage
from app.db.quotas import set_limits
from app.db.recovery import fail_overdue_jobs
from app.domain.errors import DomainError
from app.http.problems import STATUS

QUOTAS = ("max_active_jobs", "max_jobs_per_day", "max_minutes_per_day", "max_stored_bytes")


def start(api, job_id, worker="w1"):
    claimed = claim(api.database, job_id, worker, 60)
    assert claimed is not None
    return Attempt(api.database, claimed)


def problem(answer, status, code):
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert body["code"] == code
    assert body["status"] == status
    assert body["request_id"] == answer.headers["x-request-id"]
    return body


def test_submitting_answers_202_with_everything_needed_to_follow(api):
    body = {
        "model": {"repo_id": "org/tiny"},
        "recipe": {"extends": "spq-paper", "calibration": {"samples": 2}},
        "evaluation": {"limit": 3},
        "output": {"repo_id": "me/out"},
        "labels": {"team": "nlp"},
    }
    answer = api.client.post("/jobs", json=body, headers=api.headers())
    job = answer.json()
    assert answer.status_code == 202
    assert answer.headers["location"] == f"/jobs/{job['id']}"
    assert int(answer.headers["retry-after"]) > 0
    assert job["status"] == "queued"
    assert job["recipe"]["calibration"]["samples"] == 2
    assert len(job["recipe_sha256"]) == 64
    assert job["request"]["labels"] == {"team": "nlp"}
    assert job["request"]["output"] == {"repo_id": "me/out", "private": True}
    again = api.client.get(answer.headers["location"], headers=api.headers())
    assert again.json() == job | {"queue": again.json()["queue"]}


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({}, "/model"),
        ({"model": {"repo_id": "a/b", "path": "c"}}, "/model"),
        ({"model": {}}, "/model"),
        ({"model": {"repo_id": "../etc"}}, "/model/repo_id"),
        ({"model": {"path": "../etc"}}, "/model/path"),
        ({"model": {"repo_id": "a/b"}, "reciepe": "int8"}, "/reciepe"),
        ({"model": {"repo_id": "a/b"}, "evaluation": {"limit": 0}}, "/evaluation/limit"),
        ({"model": {"repo_id": "a/b"}, "labels": {"a b": "x"}}, "/labels/a b/[key]"),
    ],
)
def test_malformed_requests_point_at_the_part(api, body, pointer):
    answer = api.client.post("/jobs", json=body, headers=api.headers())
    found = problem(answer, 422, "invalid_request")
    assert pointer in [one["pointer"] for one in found["errors"]]


def test_bad_recipes_and_models_are_refused_at_once(api):
    def post(**changes):
        return api.client.post(
            "/jobs", json={"model": {"repo_id": "a/b"}} | changes, headers=api.headers()
        )

    assert "nope" in problem(post(recipe="nope"), 422, "invalid_recipe")["detail"]
    assert (
        "varience"
        in problem(
            post(recipe={"stages": [{"type": "svd", "varience": 1}]}), 422, "invalid_recipe"
        )["detail"]
    )
    assert (
        "SPQ_MODEL_DIRS"
        in problem(post(model={"path": "unknown"}), 422, "model_not_found")["detail"]
    )
    quiz = problem(post(evaluation={"tasks": ["my_quiz"]}), 422, "unknown_task")
    assert "put my_quiz.jsonl into the folder that SPQ_DATA_DIR" in quiz["detail"]
    limit = {"extends": "int8", "gates": {"min": {"gsm8k.exact_match_strict-match": 0.1}}}
    assert (
        "not among evaluation.tasks" in problem(post(recipe=limit), 422, "invalid_recipe")["detail"]
    )
    unknown = problem(post(evaluation={"perplexity": ["pile"]}), 422, "unknown_dataset")
    assert "'pile'" in unknown["detail"]
    assert post(model={"path": "tiny-llama"}).status_code == 202


def test_other_malformed_requests_have_the_same_shape(api):
    headers = api.headers()
    problem(
        api.client.post(
            "/jobs", content=b"{", headers=headers | {"content-type": "application/json"}
        ),
        400,
        "malformed_json",
    )
    problem(api.client.post("/jobs", json={"x": "y" * 30_000}, headers=headers), 413, "too_large")
    problem(api.client.get("/nowhere"), 404, "not_found")
    problem(api.client.put("/jobs", headers=headers), 405, "method_not_allowed")
    problem(api.client.get("/jobs?after=garbage", headers=headers), 400, "invalid_cursor")
    problem(api.client.get("/jobs?limit=0", headers=headers), 422, "invalid_request")


@pytest.mark.parametrize("text", ["a\0b", "a\ud800b"])
def test_text_no_database_can_hold_is_refused_everywhere(api, text):
    model = {"repo_id": "a/b"}
    stages = [{"type": "quantize"}]
    bodies = (
        {"model": model, "labels": {"k": text}},
        {"model": model, "labels": {text: "v"}},
        {"model": model, text: 1},
        {"model": model, "recipe": text},
        {"model": model, "recipe": {"stages": stages, "metadata": {"description": text}}},
        {"model": model, "recipe": {"stages": stages, text: 1}},
    )
    headers = api.headers() | {"content-type": "application/json"}
    for body in bodies:
        answer = api.client.post("/jobs", content=json.dumps(body), headers=headers)
        problem(answer, 422, "invalid_request")


def test_infinite_gates_and_odd_paths_and_cursors_are_refused(api):
    headers = api.headers()
    gates = {"extends": "int8", "gates": {"max_perplexity_ratio": float("inf")}}
    body = json.dumps({"model": {"repo_id": "a/b"}, "recipe": gates})
    answer = api.client.post(
        "/jobs", content=body, headers=headers | {"content-type": "application/json"}
    )
    problem(answer, 422, "invalid_recipe")
    for path in ("job_x", "x" * 300):
        problem(api.client.get(f"/jobs/{path}", headers=headers), 404, "job_not_found")
        problem(api.client.get(f"/jobs/{path}/events", headers=headers), 404, "job_not_found")
        problem(api.client.post(f"/jobs/{path}/cancel", headers=headers), 404, "job_not_found")
    for position in (
        "0001-01-01T00:00:00+23:59|x",
        "9999-12-31T23:59:59-23:59|x",
        "2026-01-01T00:00:00+00:00|a\0",
    ):
        cursor = base64.urlsafe_b64encode(position.encode()).decode()
        problem(api.client.get(f"/jobs?after={cursor}", headers=headers), 400, "invalid_cursor")


def test_bodies_without_a_length_are_refused(api):
    answer = api.client.post("/jobs", content=iter([b"{}"]), headers=api.headers())
    problem(answer, 411, "length_required")


def test_keys_are_needed_and_scopes_are_kept(api):
    answer = api.client.get("/jobs")
    problem(answer, 401, "unauthenticated")
    assert answer.headers["www-authenticate"] == "Bearer"
    problem(
        api.client.get("/jobs", headers={"Authorization": "Bearer spq_wrong"}),
        401,
        "unauthenticated",
    )
    reading = api.headers(scopes=("jobs:read",))
    assert api.client.get("/jobs", headers=reading).status_code == 200
    found = problem(
        api.client.post("/jobs", json={"model": {"repo_id": "a/b"}}, headers=reading),
        403,
        "permission_denied",
    )
    assert "jobs:write" in found["detail"]


def test_another_tenants_job_does_not_exist(api):
    job = api.submit("alice")
    bob = api.headers("bob")
    paths = ("", "/events", "/logs", "/metrics", "/layers", "/artifacts", "/artifacts/config.json")
    for path in paths:
        problem(api.client.get(f"/jobs/{job['id']}{path}", headers=bob), 404, "job_not_found")
    problem(api.client.post(f"/jobs/{job['id']}/cancel", headers=bob), 404, "job_not_found")
    problem(api.client.delete(f"/jobs/{job['id']}", headers=bob), 404, "job_not_found")
    assert api.client.get("/jobs", headers=bob).json()["data"] == []


def test_an_unchanged_job_costs_no_body(api):
    job = api.submit()
    url, headers = f"/jobs/{job['id']}", api.headers()
    etag = api.client.get(url, headers=headers).headers["etag"]
    unchanged = api.client.get(url, headers=headers | {"If-None-Match": etag})
    assert (unchanged.status_code, unchanged.content) == (304, b"")
    page_etag = api.client.get("/jobs", headers=headers).headers["etag"]
    assert (
        api.client.get("/jobs", headers=headers | {"If-None-Match": page_etag}).status_code == 304
    )
    start(api, job["id"])
    assert api.client.get(url, headers=headers | {"If-None-Match": etag}).status_code == 200
    assert (
        api.client.get("/jobs", headers=headers | {"If-None-Match": page_etag}).status_code == 200
    )


def test_pages_cover_every_job_once_even_while_new_ones_arrive(api):
    jobs = [api.submit()["id"] for _ in range(7)]
    seen, url = [], "/jobs?limit=3"
    while url:
        page = api.client.get(url, headers=api.headers())
        seen += [job["id"] for job in page.json()["data"]]
        url = page.links.get("next", {}).get("url")
        assert page.json()["has_more"] == (url is not None)
        api.submit()
    assert seen == jobs[::-1]


def test_jobs_are_filtered_by_status(api):
    first, second = api.submit()["id"], api.submit()["id"]
    start(api, first)
    for status, expected in (("running", [first]), ("queued", [second]), ("failed", [])):
        page = api.client.get(f"/jobs?status={status}", headers=api.headers()).json()
        assert [job["id"] for job in page["data"]] == expected


def test_cancelling(api):
    headers = api.headers()
    queued, running = api.submit()["id"], api.submit()["id"]
    answer = api.client.post(f"/jobs/{queued}/cancel", headers=headers)
    assert (answer.status_code, answer.json()["status"]) == (200, "canceled")
    assert claim(api.database, queued, "w", 60) is None

    attempt = start(api, running)
    for _ in range(2):
        answer = api.client.post(f"/jobs/{running}/cancel", headers=headers)
        assert (answer.status_code, answer.json()["status"]) == (202, "canceling")
    assert attempt.renew(60) is LeaseReply.CANCEL
    attempt.cancel()
    answer = api.client.post(f"/jobs/{running}/cancel", headers=headers)
    assert (answer.status_code, answer.json()["status"]) == (200, "canceled")


def test_a_job_that_is_making_its_commit_cannot_be_cancelled(api):
    job = api.submit()["id"]
    attempt = start(api, job)
    attempt.begin_commit()
    problem(
        api.client.post(f"/jobs/{job}/cancel", headers=api.headers()), 409, "publish_in_progress"
    )
    attempt.give_back("worker_lost")
    # The lost attempt may have made its commit: the job must not end as canceled.
    problem(
        api.client.post(f"/jobs/{job}/cancel", headers=api.headers()), 409, "publish_in_progress"
    )
    start(api, job).succeed(result={}, layers=[], metrics=[], files=[])


def test_only_ended_jobs_are_deleted(api):
    job = api.submit()["id"]
    problem(api.client.delete(f"/jobs/{job}", headers=api.headers()), 409, "job_active")
    api.client.post(f"/jobs/{job}/cancel", headers=api.headers())
    assert api.client.delete(f"/jobs/{job}", headers=api.headers()).status_code == 204
    problem(api.client.get(f"/jobs/{job}", headers=api.headers()), 404, "job_not_found")


def test_history_figures_and_files_of_a_finished_job(api):
    job = api.submit()["id"]
    attempt = start(api, job)
    attempt.progress(
        "svd",
        {
            "done": 1,
            "total": 4,
            "stage": "svd",
            "unit": "blocks",
            "message": "",
            "fraction": 0.25,
            "updated_at": "2026-01-01T00:00:00+00:00",
        },
    )
    attempt.log(["hello", "world"])
    shown = api.client.get(f"/jobs/{job}", headers=api.headers()).json()
    assert (shown["stage"], shown["progress"]["fraction"]) == ("svd", 0.25)
    folder = api.artifact_dir / job
    folder.mkdir(parents=True)
    (folder / "config.json").write_bytes(b"{}")
    (folder / "unlisted").write_bytes(b"secret")
    attempt.succeed(
        result={"rows": []},
        layers=[
            {"layer": "a", "stage": "svd", "applied": True, "reason": "", "figures": {"rank": 3}}
        ],
        metrics=[{"model": "result", "name": "perplexity", "dataset": "d", "value": 1.5}],
        files=[FinishedFile(path="config.json", bytes=2, sha256="ab" * 32)],
    )

    def data(path):
        return api.client.get(f"/jobs/{job}/{path}", headers=api.headers()).json()["data"]

    events = data("events")
    assert [one["seq"] for one in events] == list(range(1, len(events) + 1))
    assert [one["data"].get("status") for one in events if one["type"] == "status"] == [
        "queued",
        "running",
        "succeeded",
    ]
    assert [one["seq"] for one in data("events?after=2")] == [3, 4]
    assert [one["text"] for one in data("logs")] == ["hello", "world"]
    assert data("metrics") == [
        {"model": "result", "name": "perplexity", "dataset": "d", "value": 1.5}
    ]
    assert data("layers")[0]["figures"] == {"rank": 3}
    assert data("artifacts")[0]["url"] == f"/jobs/{job}/artifacts/config.json"
    got = api.client.get(f"/jobs/{job}/artifacts/config.json", headers=api.headers())
    assert (got.status_code, got.content) == (200, b"{}")
    for path in ("unlisted", "..%2f..%2fspq.db", "nope"):
        assert (
            api.client.get(f"/jobs/{job}/artifacts/{path}", headers=api.headers()).status_code
            == 404
        )


def test_what_the_service_can_do(api):
    assert api.client.get("/livez").json() == {"status": "ok"}
    assert api.client.get("/readyz").status_code == 200
    problem(api.client.get("/capabilities"), 401, "unauthenticated")
    capabilities = api.client.get("/capabilities", headers=api.headers()).json()
    assert capabilities["local_models"] == ["tiny-llama"]
    assert {one["name"] for one in api.client.get("/recipes").json()["data"]} >= {
        "int8",
        "spq-paper",
    }
    problem(api.client.get("/recipes/nope"), 422, "invalid_recipe")
    assert "stages" in api.client.get("/schemas/recipe-v1.json").json()["properties"]
    api.submit()
    assert 'spq_jobs{status="queued"} 1.0' in api.client.get("/metrics").text
    page = api.client.get("/")
    assert page.url.path == "/ui/"
    assert "script-src 'self'" in page.headers["content-security-policy"]
    script = api.client.get("/ui/assets/app.js")
    assert script.headers["content-type"].startswith("text/javascript")
    same = {"If-None-Match": script.headers["etag"]}
    assert api.client.get("/ui/assets/app.js", headers=same).status_code == 304
    assert api.client.head("/ui/jobs/whatever").status_code == 200, (
        "the page makes its views itself"
    )
    problem(api.client.get("/ui/assets/main.py"), 404, "not_found")


def kinds(error):
    """All kinds of an error, wherever they are written."""
    for kind in error.__subclasses__():
        yield kind
        yield from kinds(kind)


def test_every_domain_error_has_a_status():
    known = {kind for kind in kinds(DomainError) if kind.__module__.startswith("app.")}
    assert len(known) >= 35
    assert known <= set(STATUS)


def test_every_documented_problem_refers_to_the_shape(api):
    document = api.client.get("/openapi.json").json()
    assert document["components"]["schemas"]["Problem"]["properties"]["code"]
    answer = document["paths"]["/jobs/{job_id}"]["get"]["responses"]["404"]
    assert answer["content"]["application/problem+json"]["schema"]["$ref"].endswith("/Problem")


def test_a_repeated_idempotency_key_makes_one_job(api):
    body = {"model": {"repo_id": "org/tiny"}, "recipe": "int8"}
    headers = api.headers() | {"Idempotency-Key": "release-7"}
    first = api.client.post("/jobs", json=body, headers=headers)
    assert "idempotent-replayed" not in first.headers
    start(api, first.json()["id"])  # the job has moved on; the answer has not
    again = api.client.post("/jobs", json=body, headers=headers)
    assert again.status_code == 202
    assert again.headers["idempotent-replayed"] == "true"
    assert again.json() == first.json()
    other = api.client.post("/jobs", json=body | {"recipe": "spq"}, headers=headers)
    problem(other, 422, "idempotency_key_reused")
    assert len(api.client.get("/jobs", headers=api.headers()).json()["data"]) == 1
    bob = api.client.post(
        "/jobs", json=body, headers=api.headers("bob") | {"Idempotency-Key": "release-7"}
    )
    assert bob.json()["id"] != first.json()["id"], "keys are a tenant's own"


def test_requests_that_failed_leave_their_idempotency_key_free(api):
    headers = api.headers() | {"Idempotency-Key": "k"}
    body = {"model": {"repo_id": "org/tiny"}, "recipe": "nope"}
    problem(api.client.post("/jobs", json=body, headers=headers), 422, "invalid_recipe")
    body["recipe"] = "int8"
    assert api.client.post("/jobs", json=body, headers=headers).status_code == 202
    bad = api.headers() | {"Idempotency-Key": "a b"}
    problem(api.client.post("/jobs", json=body, headers=bad), 422, "invalid_request")


def test_one_of_many_simultaneous_requests_with_a_key_makes_the_job(api):
    body = {"model": {"repo_id": "org/tiny"}, "recipe": "int8"}
    headers = api.headers() | {"Idempotency-Key": "same"}
    with ThreadPoolExecutor(8) as pool:
        answers = list(
            pool.map(lambda _: api.client.post("/jobs", json=body, headers=headers), range(16))
        )
    assert {answer.status_code for answer in answers} <= {202, 409}
    accepted = [answer.json()["id"] for answer in answers if answer.status_code == 202]
    assert len(set(accepted)) == 1
    for refused in (answer for answer in answers if answer.status_code == 409):
        assert problem(refused, 409, "request_in_progress")
        assert refused.headers["retry-after"]
    assert len(api.client.get("/jobs", headers=api.headers()).json()["data"]) == 1


def test_an_answer_is_forgotten_after_two_days(api):
    headers = api.headers() | {"Idempotency-Key": "old"}
    body = {"model": {"repo_id": "org/tiny"}, "recipe": "int8"}
    first = api.client.post("/jobs", json=body, headers=headers).json()["id"]
    with api.database.write() as session:
        session.execute(
            update(IdempotentAnswer).values(created_at=datetime(2020, 1, 1, tzinfo=UTC))
        )
    assert api.client.post("/jobs", json=body, headers=headers).json()["id"] != first


def test_retrying_makes_a_new_job_of_a_failed_one(api):
    old = api.submit(
        recipe={"extends": "spq-paper", "calibration": {"samples": 3}}, labels={"a": "b"},
        limits={"max_runtime_seconds": 60},
    )  # fmt: skip
    url = f"/jobs/{old['id']}/retry"
    problem(api.client.post(url, headers=api.headers()), 409, "job_not_retryable")
    start(api, old["id"]).fail({"code": "internal", "message": "x", "retryable": False})
    answer = api.client.post(url, headers=api.headers())
    assert answer.status_code == 202
    new = answer.json()
    assert new["retry_of"] == old["id"] != new["id"]
    for same in ("recipe", "request", "model", "labels", "recipe_sha256"):
        assert new[same] == old[same]
    assert api.client.get(f"/jobs/{old['id']}", headers=api.headers()).json()["status"] == "failed"
    problem(api.client.post(url, headers=api.headers("bob")), 404, "job_not_found")


def test_lists_are_filtered(api):
    first = api.submit(labels={"team": "nlp", "run": "1"})
    second = api.submit(labels={"team": "nlp"}, model={"repo_id": "org/other"})
    api.submit()

    def listed(**query):
        page = api.client.get("/jobs", params=query, headers=api.headers())
        assert page.status_code == 200, page.text
        return [job["id"] for job in page.json()["data"]]

    assert listed(**{"label.team": "nlp"}) == [second["id"], first["id"]]
    assert listed(**{"label.team": "nlp", "label.run": "1"}) == [first["id"]]
    assert listed(**{"label.team": "n"}) == []
    assert listed(model="org/other") == [second["id"]]
    assert second["id"] in listed(created_after=first["created_at"])
    assert first["id"] not in listed(created_after=first["created_at"])
    start(api, first["id"])
    assert listed(status="running", model="org/tiny") == [first["id"]]


def test_waiting_for_a_change(api):
    job = api.submit()
    url = f"/jobs/{job['id']}"
    begun = time.monotonic()
    with ThreadPoolExecutor(1) as pool:
        pending = pool.submit(
            api.client.get, url,
            headers=api.headers() | {"Prefer": "wait=20", "If-None-Match": f'"{job["version"]}"'},
        )  # fmt: skip
        time.sleep(0.7)
        assert not pending.done()
        start(api, job["id"])
        answer = pending.result(60)
    assert time.monotonic() - begun < 19
    assert answer.json()["status"] == "running"
    assert answer.headers["preference-applied"] == "wait=20"
    unchanged = api.client.get(
        url, headers=api.headers() | {"Prefer": "wait=1", "If-None-Match": answer.headers["etag"]}
    )
    assert unchanged.status_code == 304


def test_events_as_a_stream_go_on_where_they_broke_and_end_with_the_job(api):
    job = api.submit()
    attempt = start(api, job["id"])
    attempt.progress("svd", {"done": 1, "total": 2})
    attempt.fail({"code": "internal", "message": "x", "retryable": False})
    url = f"/jobs/{job['id']}/events"
    headers = api.headers() | {"Accept": "text/event-stream"}
    whole = api.client.get(url, headers=headers)
    assert whole.headers["content-type"].startswith("text/event-stream")
    frames = [frame for frame in whole.text.split("\n\n") if "id: " in frame]
    assert [frame.split("id: ")[1].split("\n")[0] for frame in frames] == ["1", "2", "3", "4"]
    assert "event: progress" in frames[2]
    data = json.loads(frames[3].split("data: ")[1].split("\n")[0])
    assert data["data"]["status"] == "failed"
    rest = api.client.get(url, headers=headers | {"Last-Event-ID": "3"}).text
    assert "id: 4" in rest
    assert "id: 3" not in rest
    missing = api.client.get("/jobs/job_x/events", headers=headers)
    problem(missing, 404, "job_not_found")
    problem(api.client.get(url, headers=api.headers("bob") | {"Accept": "text/event-stream"}), 404, "job_not_found")  # fmt: skip


def test_submissions_of_a_key_are_counted_by_the_minute(api):
    service = api.client.app.state.jobs
    api.client.app.state.jobs = replace(service, submissions_per_minute=2)
    headers, body = api.headers(), {"model": {"repo_id": "a/b"}, "recipe": "int8"}
    answers = [api.client.post("/jobs", json=body, headers=headers) for _ in range(3)]
    if [answer.status_code for answer in answers] == [202, 202, 202]:  # a minute began in between
        answers = [api.client.post("/jobs", json=body, headers=headers) for _ in range(3)]
    assert answers[0].headers["ratelimit-policy"] == '"create";q=2;w=60'
    assert re.fullmatch(r'"create";r=[01];t=\d+', answers[0].headers["ratelimit"])
    problem(answers[2], 429, "rate_limited")
    assert 1 <= int(answers[2].headers["retry-after"]) <= 60
    other = api.client.post("/jobs", json=body, headers=api.headers("bob"))
    assert other.status_code == 202, "each key has its own count"


def test_quotas_hold_under_simultaneous_requests_and_are_a_tenants_own(api):
    with api.database.write() as session:
        set_limits(session, "alice", {"max_active_jobs": 3})
    headers, body = api.headers(), {"model": {"repo_id": "a/b"}, "recipe": "int8"}
    with ThreadPoolExecutor(8) as pool:
        answers = list(
            pool.map(lambda _: api.client.post("/jobs", json=body, headers=headers), range(12))
        )
    accepted = [answer for answer in answers if answer.status_code == 202]
    assert len(accepted) == 3
    refused = next(answer for answer in answers if answer.status_code != 202)
    assert "max_active_jobs of 3" in problem(refused, 429, "quota_exceeded")["detail"]
    assert refused.headers["retry-after"]
    api.client.post(f"/jobs/{accepted[0].json()['id']}/cancel", headers=headers)
    assert api.client.post("/jobs", json=body, headers=headers).status_code == 202
    api.submit("bob")


def test_quotas_of_bytes_and_minutes(api):
    def refused(**limits):
        with api.database.write() as session:
            set_limits(session, "alice", dict.fromkeys(QUOTAS) | limits)
        body = {"model": {"repo_id": "a/b"}, "recipe": "int8"}
        answer = api.client.post("/jobs", json=body, headers=api.headers())
        return answer.status_code == 429

    job = api.submit()
    attempt = start(api, job["id"])
    attempt.succeed(
        result={}, layers=[], metrics=[], files=[FinishedFile(path="a", bytes=1000, sha256="0")]
    )
    with api.database.write() as session:
        begun = datetime.now(UTC) - timedelta(minutes=10)
        session.execute(update(Job).where(Job.id == job["id"]).values(started_at=begun))
    assert refused(max_stored_bytes=1000)
    assert not refused(max_stored_bytes=1001)
    assert refused(max_minutes_per_day=9)
    assert not refused(max_minutes_per_day=11)
    assert refused(max_jobs_per_day=3)
    assert not refused()


def test_a_job_that_was_started_in_time_does_not_fail_for_waiting(api):
    job = api.submit(limits={"max_pending_seconds": 1})
    start(api, job["id"]).give_back("worker_lost")
    with api.database.write() as session:
        past = datetime.now(UTC) - timedelta(hours=1)
        session.execute(update(Job).where(Job.id == job["id"]).values(start_before=past))
    assert fail_overdue_jobs(api.database) == 0
    other = api.submit(limits={"max_pending_seconds": 1})
    with api.database.write() as session:
        session.execute(update(Job).where(Job.id == other["id"]).values(start_before=past))
    assert fail_overdue_jobs(api.database) == 1


def test_deleting_jobs_gives_no_quota_back(api):
    with api.database.write() as session:
        set_limits(session, "alice", {"max_jobs_per_day": 2})
    for _ in range(2):
        job = api.submit()
        api.client.post(f"/jobs/{job['id']}/cancel", headers=api.headers())
        assert api.client.delete(f"/jobs/{job['id']}", headers=api.headers()).status_code == 204
    body = {"model": {"repo_id": "a/b"}, "recipe": "int8"}
    problem(api.client.post("/jobs", json=body, headers=api.headers()), 429, "quota_exceeded")


def test_a_job_waits_longer_each_time_the_hub_is_away_and_not_when_its_worker_died(api):
    def message(reason):
        job = api.submit()["id"]
        start(api, job).give_back(reason)
        with api.database.read() as session:
            rows = session.scalars(
                select(OutboxMessage).where(OutboxMessage.job_id == job).order_by(OutboxMessage.id)
            ).all()
        return (rows[-1].not_before - rows[-1].created_at).total_seconds()

    assert message("worker_lost") < 1
    assert 15 < message("hub_unavailable") < 30


def test_nested_and_odd_requests_are_refused_and_no_crash(api):
    nested: object = "x"
    for _ in range(300):
        nested = {"a": nested}
    body = {"model": {"repo_id": "a/b"}, "recipe": nested}
    problem(api.client.post("/jobs", json=body, headers=api.headers()), 422, "invalid_request")
    for path in (
        "/jobs?model=%00",
        "/jobs?label.a=%00",
        "/jobs/%00",
        "/webhook_deliveries?job_id=%00",
    ):
        problem(api.client.get(path, headers=api.headers()), 400, "malformed_request")


@pytest.mark.parametrize("moment", ["0001-01-01T00:00:00%2B12:00", "9999-12-31T23:59:59-12:00"])
def test_instants_outside_of_the_calendar_are_refused(api, moment):
    answer = api.client.get(f"/jobs?created_after={moment}", headers=api.headers())
    assert "calendar" in problem(answer, 422, "invalid_request")["detail"]


def test_no_list_asks_for_more_labels_than_a_job_has(api):
    query = {f"label.l{number}": "1" for number in range(1200)}
    problem(api.client.get("/jobs", params=query, headers=api.headers()), 422, "invalid_request")


@pytest.mark.parametrize("token", ["hf_x\n", "hf_x ", "hf_\u00e9", "hf\tx", ""])
def test_a_hub_token_that_no_header_holds_is_refused_at_once(api, token):
    """A line break comes from reading a file; hours later it would look as if the Hub were away."""
    body = {"model": {"repo_id": "a/b"}, "recipe": "int8", "hub_token": token}
    answer = api.client.post("/jobs", json=body, headers=api.headers())
    assert "visible ASCII" in problem(answer, 422, "invalid_request")["detail"]


def test_another_hub_token_is_another_request(api):
    body = {"model": {"repo_id": "a/b"}, "recipe": "int8"}
    headers = api.headers() | {"Idempotency-Key": "k"}
    for token, status in (("hf_wrong", 202), ("hf_wrong", 202), ("hf_right", 422)):
        answer = api.client.post("/jobs", json=body | {"hub_token": token}, headers=headers)
        assert answer.status_code == status
    assert answer.json()["code"] == "idempotency_key_reused"
    assert "hf_" not in answer.text


def test_minutes_of_a_deleted_job_stay_used(api):
    """By when it ran, not by when it was submitted: it may have waited for long."""
    with api.database.write() as session:
        set_limits(session, "alice", {"max_minutes_per_day": 30})
    job = api.submit()["id"]
    start(api, job).succeed(result={}, layers=[], metrics=[], files=[])
    moment = datetime.now(UTC)
    with api.database.write() as session:
        session.execute(
            update(Job).where(Job.id == job).values(
                created_at=moment - timedelta(hours=25), started_at=moment - timedelta(hours=3),
                finished_at=moment - timedelta(hours=1),
            )
        )  # fmt: skip
    body = {"model": {"repo_id": "a/b"}, "recipe": "int8"}
    for delete in (False, True):
        if delete:
            assert api.client.delete(f"/jobs/{job}", headers=api.headers()).status_code == 204
        problem(api.client.post("/jobs", json=body, headers=api.headers()), 429, "quota_exceeded")


def test_clients_that_wait_are_bounded_and_others_are_still_answered(api, monkeypatch):
    monkeypatch.setattr("app.http.waiting.OF_ONE_KEY", 1)
    job = api.submit()["id"]
    key = api.headers()
    with api.database.look() as connection:
        caller = find_principal(connection, key["Authorization"].split()[1])
    with api.client.app.state.jobs.waiting.place(caller.key_id):
        stream = key | {"Accept": "text/event-stream"}
        problem(api.client.get(f"/jobs/{job}/events", headers=stream), 429, "too_many_requests")
        begun = time.monotonic()
        answer = api.client.get(f"/jobs/{job}", headers=key | {"Prefer": "wait=30"})
        assert answer.status_code == 200
        assert time.monotonic() - begun < 20, "it is answered, only not later"
    begun = time.monotonic()
    api.client.get(f"/jobs/{job}", headers=key | {"Prefer": "wait=1"})
    assert time.monotonic() - begun >= 1, "the place is free again"


def test_a_repeated_request_gets_its_answer_though_what_it_named_is_gone(api):
    """The client only wants to know whether its first request arrived."""
    headers = api.headers() | {"Idempotency-Key": "k"}
    body = {"model": {"path": "tiny-llama"}, "recipe": "int8"}
    first = api.client.post("/jobs", json=body, headers=headers)
    job = first.json()["id"]
    api.client.post(f"/jobs/{job}/cancel", headers=headers)
    again = {"Idempotency-Key": "again"} | api.headers()
    retried = api.client.post(f"/jobs/{job}/retry", headers=again)
    assert api.client.delete(f"/jobs/{job}", headers=headers).status_code == 204
    state = api.client.app.state
    without = replace(
        state.jobs.admission, settings=state.settings.model_copy(update={"model_dirs": ""})
    )
    state.jobs = replace(state.jobs, admission=without)
    replay = api.client.post("/jobs", json=body, headers=headers)
    assert (replay.status_code, replay.json()) == (202, first.json())
    assert replay.headers["idempotent-replayed"] == "true"
    replay = api.client.post(f"/jobs/{job}/retry", headers=again)
    assert (replay.status_code, replay.json()) == (202, retried.json())
