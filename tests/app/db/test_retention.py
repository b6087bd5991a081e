"""What is forgotten for its age, and what is not."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial

import pytest
from sqlalchemy import func, select, update

from app.artifacts.leftovers import A_WHILE
from app.artifacts.local import FOLDER, LocalStore
from app.db.attempts import Attempt, FinishedFile, claim
from app.db.models import Job, JobEvent, JobLogLine, JobSecret
from app.db.retention import Retention
from app.db.session import now
from app.domain.errors import StoreAwayError
from app.ops.housekeeper import Housekeeper


@pytest.fixture
def finished(api):
    """A job that ended ten days ago, with an artifact and a log."""

    def make():
        job_id = api.submit()["id"]
        attempt = Attempt(api.database, claim(api.database, job_id, "w", 60))
        attempt.log(["line"])
        (api.artifact_dir / job_id).mkdir(parents=True)
        (api.artifact_dir / job_id / "config.json").write_text("{}")
        files = [FinishedFile(path="config.json", bytes=2, sha256="0" * 64)]
        attempt.succeed(result={}, layers=[], metrics=[], files=files)
        with api.database.write() as session:
            ended = now(session) - timedelta(days=10)
            session.execute(update(Job).where(Job.id == job_id).values(finished_at=ended))
        return job_id

    return make


def expire(api, **days):
    keeper = Housekeeper(
        api.database, None, 1, 1, 1, LocalStore(api.artifact_dir), retention=Retention(**days)
    )
    keeper.expire()


def rows(api, table):
    with api.database.read() as session:
        return session.scalar(select(func.count()).select_from(table))


def get(api, path):
    return api.client.get(path, headers=api.headers())


def test_nothing_is_forgotten_by_default(api, finished):
    job_id = finished()
    expire(api)
    assert get(api, f"/jobs/{job_id}/artifacts/config.json").status_code == 200
    assert rows(api, JobLogLine) == 1
    assert rows(api, JobEvent) > 0


def test_an_old_artifact_goes_and_its_figures_stay(api, finished):
    old, unfinished = finished(), api.submit()["id"]
    expire(api, artifact_days=11)
    assert get(api, f"/jobs/{old}/artifacts/config.json").status_code == 200
    before = get(api, f"/jobs/{old}").headers["etag"]
    expire(api, artifact_days=9)
    gone = get(api, f"/jobs/{old}/artifacts/config.json")
    assert (gone.status_code, gone.json()["code"]) == (410, "artifact_expired")
    assert not (api.artifact_dir / old).exists()
    assert get(api, f"/jobs/{old}/artifacts").json()["data"] == []
    job = get(api, f"/jobs/{old}")
    assert job.json()["status"] == "succeeded"
    assert job.json()["artifact_expired_at"] is not None
    assert job.headers["etag"] != before, "a client that polls hears of it"
    assert get(api, f"/jobs/{unfinished}").json()["artifact_expired_at"] is None


def test_logs_events_and_jobs_each_have_their_time(api, finished):
    job_id = finished()
    waiting = api.submit()["id"]
    expire(api, log_days=9, event_days=11)
    assert rows(api, JobLogLine) == 0
    assert get(api, f"/jobs/{job_id}/events").json()["data"]
    expire(api, event_days=9)
    assert get(api, f"/jobs/{job_id}/events").json()["data"] == []
    assert get(api, f"/jobs/{waiting}/events").json()["data"]
    expire(api, job_days=9)
    assert get(api, f"/jobs/{job_id}").status_code == 404
    assert not (api.artifact_dir / job_id).exists()
    assert get(api, f"/jobs/{waiting}").status_code == 200


def test_what_a_deleted_job_left_is_removed_and_a_strangers_is_not(api, finished):
    """The database may be the wrong one: empty, restored in part, another installation's."""
    known, deleted, unknown = finished(), finished(), "job_" + "f" * 32
    assert api.client.delete(f"/jobs/{deleted}", headers=api.headers()).status_code == 204
    for name in (deleted, unknown, "something else"):  # the first by an attempt that was frozen
        (api.artifact_dir / name).mkdir(parents=True)
        (api.artifact_dir / FOLDER / f"{name}.1").mkdir(parents=True)
    expire(api, job_days=1000)
    Housekeeper(api.database, None, 1, 1, 1, LocalStore(api.artifact_dir)).tidy()
    assert {path.name for path in api.artifact_dir.iterdir()} == {
        FOLDER, known, unknown, "something else",
    }  # fmt: skip
    assert {path.stem for path in (api.artifact_dir / FOLDER).iterdir()} == {
        unknown, "something else",
    }  # fmt: skip


def test_a_folder_of_an_ended_job_without_files_is_removed(api, finished):
    """Of an attempt that was lost between keeping its artifact and ending its job."""
    kept, running = finished(), api.submit()["id"]
    assert claim(api.database, running, "w", 60)
    orphan = api.submit()["id"]
    api.client.post(f"/jobs/{orphan}/cancel", headers=api.headers())
    for name in (running, orphan):
        (api.artifact_dir / name).mkdir(parents=True)
    expire(api)
    assert (api.artifact_dir / orphan).exists(), "its attempt may be about to end"
    with api.database.write() as session:
        session.execute(
            update(Job).where(Job.id == orphan).values(finished_at=now(session) - A_WHILE * 2)
        )
    expire(api)
    assert {path.name for path in api.artifact_dir.iterdir()} == {kept, running}


def test_what_goes_wrong_in_one_step_keeps_no_other_from_being_done(api, finished, monkeypatch):
    job_id = finished()

    def broken(*_):
        raise ZeroDivisionError

    monkeypatch.setattr("app.ops.housekeeper.expire_history", broken)
    expire(api, artifact_days=9)
    assert not (api.artifact_dir / job_id).exists()


def test_deleting_a_job_twice_at_once_is_no_error(api, finished):
    headers = [api.headers() for _ in range(4)]

    def deleted(job_id, header):
        return api.client.delete(f"/jobs/{job_id}", headers=header).status_code

    for _ in range(5):
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(partial(deleted, finished()), headers))
        assert sorted(answers) == [204, 404, 404, 404]


def test_a_hub_token_is_sealed_never_shown_and_forgotten_with_its_job(api):
    canary = "hf_canary_of_a_client"
    job = api.submit(hub_token=canary)
    assert canary not in str(job)
    assert job["request"]["hub_token"] == "**********"
    with api.database.read() as session:
        sealed = session.scalars(select(JobSecret.sealed)).one()
    assert canary not in sealed
    assert claim(api.database, job["id"], "w", 60).sealed_token == sealed
    for bad in (canary + "x" * 600, [canary], ""):
        body = {"model": {"repo_id": "a/b"}, "hub_token": bad, "recipe": "int8"}
        refused = api.client.post("/jobs", json=body, headers=api.headers())
        assert refused.status_code == 422
        assert canary not in refused.text
    for body in ({"hub_token": canary, "labels": {"a": "\x1b"}}, [canary], {"hub_token": canary}):
        refused = api.client.post("/jobs", json=body, headers=api.headers())
        assert refused.status_code == 422
        assert canary not in refused.text
    api.client.post(f"/jobs/{job['id']}/cancel", headers=api.headers())
    other = api.submit(hub_token=canary)["id"]
    api.client.post(f"/jobs/{other}/cancel", headers=api.headers())
    Housekeeper(api.database, None, 1, 1, 1).sweep()
    with api.database.read() as session:
        assert [row.job_id for row in session.scalars(select(JobSecret))] == [job["id"]]
    again = api.client.post(f"/jobs/{other}/retry", headers=api.headers())
    assert (again.status_code, again.json()["code"]) == (409, "job_not_retryable")
    assert "hub_token" in again.json()["detail"]


class Stubborn(LocalStore):
    """Has a job that cannot be removed."""

    def remove(self, job_id):
        if job_id == min(self.jobs()):
            raise StoreAwayError("HTTP 403 AccessDenied")
        super().remove(job_id)


def test_one_artifact_that_cannot_be_removed_keeps_no_other(api):
    jobs = sorted(api.submit()["id"] for _ in range(2))
    for job_id in jobs:
        Attempt(api.database, claim(api.database, job_id, "w", 60.0)).fail(
            {"code": "internal", "message": "", "retryable": False}
        )
        (api.artifact_dir / job_id).mkdir(parents=True)
        with api.database.write() as session:
            session.get(Job, job_id).finished_at = now(session) - A_WHILE * 2
    Housekeeper(api.database, None, 1, 1, 1, Stubborn(api.artifact_dir)).expire()
    assert {path.name for path in api.artifact_dir.iterdir()} == {jobs[0]}


def test_what_starts_jobs_asks_no_artifact_store(database):
    """It may hang for minutes."""
    asked = []

    class Noting:
        def __getattr__(self, name):
            asked.append(name)
            raise AttributeError(name)

    keeper = Housekeeper(database, None, 1, 1, 1, store=Noting())
    keeper.sweep()
    assert asked == []
    keeper.tidy()
    assert asked
