"""Artifacts over HTTP, from either store."""

import hashlib
import io
import os
import tarfile
from datetime import UTC, datetime

import pytest

from app.artifacts.leftovers import A_WHILE
from app.artifacts.opening import open_store
from app.artifacts.store import StoredFile
from app.db.attempts import Attempt, FinishedFile, claim
from app.db.models import Job
from app.db.retention import Retention
from app.db.session import now
from app.domain.errors import StoreAwayError
from app.jobs.archive import Archive
from app.ops.housekeeper import Housekeeper

WEIGHTS = os.urandom(10 << 20)


@pytest.fixture(params=["local", "object"])
def artifact_store(request):
    return None if request.param == "local" else request.getfixturevalue("object_store")


@pytest.fixture
def store(api, artifact_store):
    return open_store(artifact_store or str(api.artifact_dir))


@pytest.fixture
def job(api, store, tmp_path):
    """A job that has ended well; its artifact is one file."""
    return finished(api, store, tmp_path, WEIGHTS)


def finished(api, store, tmp_path, content):
    job_id = api.submit()["id"]
    scratch = tmp_path / job_id
    scratch.mkdir()
    attempt = Attempt(api.database, claim(api.database, job_id, "w", 60.0))
    work = store.take_over(job_id, 1, scratch)
    (work / "artifact" / "sub").mkdir(parents=True)
    (work / "artifact" / "sub" / "model.safetensors").write_bytes(content)
    file = StoredFile("sub/model.safetensors", len(content), hashlib.sha256(content).hexdigest())
    store.keep(job_id, work, [file])
    attempt.succeed(
        result={"rows": []}, layers=[], metrics=[],
        files=[FinishedFile(path=file.path, bytes=file.bytes, sha256=file.sha256)],
    )  # fmt: skip
    return job_id


def measure(api, job_id, **body):
    return api.client.post(f"/jobs/{job_id}/measure", json=body or None, headers=api.headers())


def test_what_cannot_be_measured_is_said_to_be_so(api, store, tmp_path):
    running = api.submit()["id"]
    answer = measure(api, running)
    assert (answer.status_code, answer.json()["code"]) == (409, "job_not_measurable")
    assert "is queued" in answer.json()["detail"]
    api.client.post(f"/jobs/{running}/cancel", headers=api.headers())
    assert "has no finished artifact" in measure(api, running).json()["detail"]
    old = finished(api, store, tmp_path, b"weights")
    assert measure(api, old).status_code == 409, "of a version that did not keep what is needed"
    assert measure(api, "job_" + "0" * 32).status_code == 404
    with api.database.write() as session:
        session.get(Job, old).result = {"load_check": {"logits": 0.0}, "compression": {}}
    accepted = measure(api, old, evaluation={"limit": 2})
    assert accepted.status_code == 202
    request = accepted.json()["request"]
    assert (request["measure_of"], request["evaluation"]["limit"]) == (old, 2)
    unknown = measure(api, old, evaluation={"perplexity": ["nowhere"]})
    assert (unknown.status_code, unknown.json()["code"]) == (422, "unknown_dataset")
    age(api, old, A_WHILE * 1000)
    Housekeeper(api.database, None, 1, 1, 1, store, retention=Retention(artifact_days=1)).expire()
    assert measure(api, old).status_code == 410


def get(api, job_id, **headers):
    path = f"/jobs/{job_id}/artifacts/sub/model.safetensors"
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return api.client.get(path, headers=api.headers() | named)


def test_a_file_is_downloaded_whole_and_in_parts(api, job):
    whole = get(api, job)
    assert (whole.status_code, whole.content) == (200, WEIGHTS)
    assert whole.headers["content-length"] == str(len(WEIGHTS))
    assert whole.headers["accept-ranges"] == "bytes"
    tag = whole.headers["etag"]
    assert tag == f'"{hashlib.sha256(WEIGHTS).hexdigest()}"'
    half = len(WEIGHTS) // 2
    rest = get(api, job, Range=f"bytes={half}-", If_Range=tag)
    assert (rest.status_code, rest.content) == (206, WEIGHTS[half:])
    assert rest.headers["content-range"] == f"bytes {half}-{len(WEIGHTS) - 1}/{len(WEIGHTS)}"
    changed = get(api, job, Range="bytes=5-9", If_Range='"another"')
    assert (changed.status_code, len(changed.content)) == (200, len(WEIGHTS))
    beyond = get(api, job, Range=f"bytes={len(WEIGHTS)}-")
    assert (beyond.status_code, beyond.content) == (416, b"")
    assert beyond.headers["content-range"] == f"bytes */{len(WEIGHTS)}"
    known = get(api, job, If_None_Match=tag)
    assert (known.status_code, known.content) == (304, b"")


def test_an_archive_holds_every_file_and_says_how_long_it_is(api, job):
    answer = api.client.get(f"/jobs/{job}/archive", headers=api.headers())
    assert answer.status_code == 200, answer.text
    assert int(answer.headers["content-length"]) == len(answer.content)
    with tarfile.open(fileobj=io.BytesIO(answer.content)) as archive:
        found = {one.name: archive.extractfile(one).read() for one in archive.getmembers()}
    assert found == {f"{job}/sub/model.safetensors": WEIGHTS}
    same = api.headers() | {"If-None-Match": answer.headers["etag"]}
    assert api.client.get(f"/jobs/{job}/archive", headers=same).status_code == 304
    other = api.submit()["id"]
    assert api.client.get(f"/jobs/{other}/archive", headers=api.headers()).status_code == 404
    assert api.client.get(f"/jobs/{job}/archive", headers=api.headers("bob")).status_code == 404


def test_names_of_any_length_and_script_fit_into_an_archive():
    names = ["a" * 140 + ".json", "ünï/模型.json", "b"]
    contents = {name: os.urandom(size) for name, size in zip(names, (0, 512, 700), strict=True)}
    files = [StoredFile(name, len(content), "0" * 64) for name, content in contents.items()]
    archive = Archive("job_1", datetime(2030, 1, 1, tzinfo=UTC), files)
    whole = b"".join(archive.content(lambda file: iter([contents[file.path]])))
    assert len(whole) == archive.size
    with tarfile.open(fileobj=io.BytesIO(whole)) as opened:
        found = {one.name: opened.extractfile(one).read() for one in opened.getmembers()}
    assert found == {f"job_1/{name}": content for name, content in contents.items()}


def test_a_file_that_the_store_lost_is_not_found(api, store, job):
    store.remove(job)
    assert get(api, job).status_code == 404


def test_a_deleted_jobs_artifact_is_gone(api, store, job):
    assert api.client.delete(f"/jobs/{job}", headers=api.headers()).status_code == 204
    assert store.jobs() == set()


def age(api, job_id, duration):
    with api.database.write() as session:
        session.get(Job, job_id).finished_at = now(session) - duration


def test_what_nobody_has_a_right_to_is_swept_and_what_is_old_expires(api, store, job, tmp_path):
    keeper = Housekeeper(api.database, None, 1, 1, 1, store, retention=Retention(artifact_days=1))
    orphan = api.submit()["id"]
    scratch = tmp_path / orphan
    scratch.mkdir()
    attempt = Attempt(api.database, claim(api.database, orphan, "w", 60.0))
    work = store.take_over(orphan, 1, scratch)
    (work / "artifact").mkdir()
    (work / "artifact" / "config.json").write_text("{}")
    copy = store.work_copy(orphan, 1, work)
    assert copy is None or copy.save()
    file = StoredFile("config.json", 2, hashlib.sha256(b"{}").hexdigest())
    store.keep(orphan, work, [file])
    attempt.fail({"code": "internal", "message": "", "retryable": False})
    age(api, orphan, A_WHILE / 2)
    keeper.tidy()
    keeper.expire()
    assert store.jobs_with_work() == set()
    assert store.jobs() == {job, orphan}, "its attempt may be about to end"
    age(api, orphan, A_WHILE * 2)
    keeper.expire()
    assert store.jobs() == {job}
    age(api, job, A_WHILE * 1000)
    keeper.expire()
    assert store.jobs() == set()
    assert get(api, job).status_code == 410


@pytest.mark.parametrize("artifact_store", ["object"], indirect=True)
def test_what_a_frozen_attempt_keeps_after_the_end_is_swept(api, store, job, tmp_path):
    late = tmp_path / "late"
    (late / "artifact").mkdir(parents=True)
    (late / "artifact" / "config.json").write_text("{}")
    file = StoredFile("config.json", 2, hashlib.sha256(b"{}").hexdigest())
    store.keep(job, late, [file])
    assert b"".join(store.read(job, file)) == b"{}"
    age(api, job, A_WHILE * 2)
    Housekeeper(api.database, None, 1, 1, 1, store).expire()
    with pytest.raises(FileNotFoundError):
        store.read(job, file)
    assert get(api, job).content == WEIGHTS


@pytest.mark.parametrize("artifact_store", ["object"], indirect=True)
def test_a_store_that_is_away_is_said_to_be(api, store, job, monkeypatch):
    def away(*_arguments, **_named):
        raise StoreAwayError("no route")

    monkeypatch.setattr("app.artifacts.object_store.ObjectStore.read", away)
    answer = get(api, job)
    assert answer.status_code == 503
    assert answer.json()["code"] == "artifact_store_unavailable"
    assert "retry-after" in answer.headers
