"""The stream of everything of a tenant: what changed is told, as it is now, and to nobody else."""

import json
from datetime import timedelta

from app.db.models import Job
from app.db.workers import note_presence
from app.live import changes
from app.live.changes import Watch
from tests.app.jobs.test_router import start


def told(watch, kind="job"):
    return [json.loads(one.json) for one in watch.look() if one.type == kind]


def test_every_change_of_a_job_is_told_as_a_row_and_nothing_twice(api):
    first = api.submit()
    watch = Watch(api.database, "alice")
    assert told(watch) == [], "the list has what was there before"
    assert told(watch) == []
    second = api.submit()
    foreign = api.submit(tenant="bob")
    (new,) = told(watch)
    assert (new["id"], new["status"], new["queue"]["position"]) == (second["id"], "queued", 2)
    attempt = start(api, first["id"])
    start(api, foreign["id"])
    (running,) = told(watch)
    assert (running["id"], running["status"]) == (first["id"], "running")
    attempt.fail({"code": "internal", "message": "no"})
    (ended,) = told(watch)
    assert (ended["id"], ended["error"]["code"]) == (first["id"], "internal")
    assert told(watch) == []
    api.client.delete(f"/jobs/{first['id']}", headers=api.headers())
    assert told(watch, "gone") == [{"id": first["id"]}]


def test_a_job_that_ended_long_ago_is_told_when_it_goes(api, monkeypatch):
    monkeypatch.setattr(changes, "MARGIN", timedelta(seconds=1))
    job = api.submit()
    start(api, job["id"]).fail({"code": "internal", "message": "no"})
    with api.database.write() as session:
        row = session.get(Job, job["id"])
        row.created_at = row.created_at.replace(year=2020)
    watch = Watch(api.database, "alice")
    watch.look()
    api.client.delete(f"/jobs/{job['id']}", headers=api.headers())
    assert told(watch, "gone") == [{"id": job["id"]}]
    assert told(watch, "gone") == []
    assert told(Watch(api.database, "bob"), "gone") == []


def test_a_job_that_is_made_and_ends_between_two_looks_is_told(api):
    watch = Watch(api.database, "alice")
    watch.look()
    job = api.submit()
    start(api, job["id"]).fail({"code": "internal", "message": "no"})
    assert [one["status"] for one in told(watch)] == ["failed"]


def test_more_changes_than_fit_are_told_by_later_looks(api, monkeypatch):
    monkeypatch.setattr(changes, "MOST_AT_ONCE", 2)
    watch = Watch(api.database, "alice")
    watch.look()
    jobs = {api.submit()["id"] for _ in range(5)}
    found = [one["id"] for _ in range(4) for one in told(watch)]
    assert len(found) == 5
    assert set(found) == jobs


def test_sweeps_and_workers_are_told_too(api):
    watch = Watch(api.database, "alice")
    (workers,) = told(watch, "workers")
    assert workers == {"present": 0, "busy": 0, "queued": 0}
    note_presence(api.database, "w1", {})
    job = api.submit()
    (workers,) = told(watch, "workers")
    assert workers == {"present": 1, "busy": 0, "queued": 1}
    start(api, job["id"], "w1")
    (workers,) = told(watch, "workers")
    assert workers == {"present": 1, "busy": 1, "queued": 0}
    body = {"model": {"repo_id": "org/tiny"}, "sweep": {"recipes": ["int8", "gptq-4"]}}
    sweep = api.client.post("/sweeps", json=body, headers=api.headers()).json()
    (seen,) = told(watch, "sweep")
    assert (seen["id"], seen["counts"]) == (sweep["id"], {"waiting": 2})
    api.client.post(f"/sweeps/{sweep['id']}/cancel", headers=api.headers())
    api.client.app.state.controller.advance()
    (seen,) = told(watch, "sweep")
    assert seen["status"] == "canceled"
    assert told(watch, "sweep") == []


def test_the_stream_begins_with_ready_and_needs_a_key(api, monkeypatch):
    monkeypatch.setattr("app.live.stream.LONGEST_STREAM_SECONDS", 0.0)
    assert api.client.get("/events").status_code == 401
    answer = api.client.get("/events", headers=api.headers())
    assert answer.headers["content-type"].startswith("text/event-stream")
    kinds = [
        line.removeprefix("event: ")
        for line in answer.text.splitlines()
        if line.startswith("event")
    ]
    assert kinds == ["workers", "ready"]


def test_looking_costs_the_same_however_many_jobs_have_ended(api):
    job = api.submit()
    start(api, job["id"]).fail({"code": "internal", "message": "no"})
    with api.database.write() as session:
        row = session.get(Job, job["id"])
        row.created_at = row.created_at.replace(year=2020)
    watch = Watch(api.database, "alice")
    watch.look()
    watch.look()
    assert not watch._jobs
