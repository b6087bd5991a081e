"""The contract of an artifact store, kept by every adapter."""

import hashlib
import os
import threading
import time

import pytest

from app.artifacts.local import FOLDER, LocalStore
from app.artifacts.object_store import WORK, connect
from app.artifacts.opening import open_store
from app.artifacts.snapshot import linked
from app.artifacts.store import StoredFile
from app.domain.errors import DamagedArtifactError, FencedError, StoreAwayError

JOB, OTHER = "job_" + "0" * 32, "job_" + "1" * 32


@pytest.fixture
def begin(store, tmp_path):
    """Begin an attempt, on a machine of its own, whose scratch folder no other sees."""

    def begin(attempt, job_id=JOB):
        scratch = tmp_path / f"machine-{attempt}-{job_id[-1]}"
        scratch.mkdir(exist_ok=True)
        return store.take_over(job_id, attempt, scratch)

    return begin


def save(store, attempt, work):
    copy = store.work_copy(JOB, attempt, work)
    return True if copy is None else copy.save()


def made(work, content=b"weights", name="model.safetensors"):
    """A finished artifact in a work folder, and the files it is listed with."""
    (work / "artifact").mkdir(exist_ok=True)
    (work / "artifact" / name).write_bytes(content)
    return [StoredFile(name, len(content), hashlib.sha256(content).hexdigest())]


def content(store, file, job_id=JOB, **part):
    return b"".join(store.read(job_id, file, **part))


def test_a_new_attempt_goes_on_from_where_the_newest_before_it_was(store, begin):
    first = begin(1)
    (first / "artifact.state").mkdir()
    (first / "artifact.state" / "state.json").write_text("1")
    assert save(store, 1, first)
    second = begin(2)
    assert (second / "artifact.state" / "state.json").read_text() == "1"
    (second / "artifact.state" / "state.json").write_text("2")
    assert save(store, 2, second)
    begin(3)  # ends before it has anything to save
    assert (begin(4) / "artifact.state" / "state.json").read_text() == "2"


def test_what_a_copy_no_longer_has_is_gone(store, begin):
    first = begin(1)
    copy = store.work_copy(JOB, 1, first)
    for number in range(3):
        (first / f"block-{number}").write_bytes(bytes([number]))
        (first / f"block-{number - 1}").unlink(missing_ok=True)
        assert copy is None or copy.save()
    assert [path.name for path in begin(2).iterdir()] == ["block-2"]


def test_an_attempt_that_wakes_up_late_takes_nothing_from_its_successor(store, begin):
    second = begin(2)
    (second / "state").write_text("2")
    assert save(store, 2, second)
    with pytest.raises(FencedError):
        begin(1)
    assert (begin(3) / "state").read_text() == "2"


def test_what_a_frozen_attempt_saves_late_changes_nothing(store, begin):
    first = begin(1)
    (first / "state").write_text("1")
    assert save(store, 1, first)
    second = begin(2)
    (second / "state").write_text("2")
    assert save(store, 2, second)
    if first.exists():  # its machine still has it
        (first / "state").write_text("1, late")
        assert save(store, 1, first)
    assert (begin(3) / "state").read_text() == "2"


def test_an_artifact_is_read_as_it_was_kept_also_in_parts(store, begin):
    weights = os.urandom(20 << 20)
    work = begin(1)
    files = [*made(work, weights), *made(work, b"{}", "config.json"), *made(work, b"", "empty")]
    folder = store.keep(JOB, work, files)
    assert {path.name for path in folder.iterdir()} == {file.path for file in files}
    assert [content(store, file) for file in files] == [weights, b"{}", b""]
    assert content(store, files[0], start=5, stop=9) == weights[5:9]
    assert content(store, files[0], start=len(weights) - 3) == weights[-3:]
    assert store.jobs() == {JOB}
    store.remove(JOB)
    assert store.jobs() == set()
    with pytest.raises(FileNotFoundError):
        store.read(JOB, files[1])


def test_what_a_lost_attempt_kept_is_replaced(store, begin):
    earlier = made(first := begin(1), b"first")
    store.keep(JOB, first, earlier)
    later = made(second := begin(2), b"second")
    store.keep(JOB, second, later)
    store.settle(JOB, later)
    assert content(store, later[0]) == b"second"
    if isinstance(store, LocalStore):
        return
    with pytest.raises(FileNotFoundError):
        store.read(JOB, earlier[0])


def test_a_frozen_attempt_that_keeps_late_changes_no_listed_file(store, begin):
    earlier = made(first := begin(1), b"first")
    listed = made(second := begin(2), b"second")
    store.keep(JOB, second, listed)
    try:
        store.keep(JOB, first, earlier)
    except FileNotFoundError:
        assert isinstance(store, LocalStore)
    store.settle(JOB, listed)
    assert content(store, listed[0]) == b"second"


def test_work_and_artifacts_of_one_job_are_not_anothers(store, begin):
    for job_id in (JOB, OTHER):
        work = begin(1, job_id)
        (work / "state.json").write_text(job_id)
        copy = store.work_copy(job_id, 1, work)
        assert copy is None or copy.save()
        store.keep(job_id, work, made(work, job_id.encode()))
    assert store.jobs() == store.jobs_with_work() == {JOB, OTHER}
    store.drop_work(JOB)
    store.remove(JOB)
    store.drop_work(JOB)  # again is no error
    store.remove(JOB)
    assert store.jobs() == store.jobs_with_work() == {OTHER}


def test_an_empty_store_has_no_jobs(store):
    assert store.jobs() == store.jobs_with_work() == set()


@pytest.fixture
def objects(object_store):
    return connect(object_store)


def take(store, tmp_path, attempt):
    scratch = tmp_path / f"machine-{attempt}"
    scratch.mkdir()
    return store.take_over(JOB, attempt, scratch)


def test_content_that_is_not_the_listed_one_is_not_uploaded(objects, tmp_path):
    files = made(work := take(objects, tmp_path, 1))
    (work / "artifact" / "model.safetensors").write_bytes(b"Weights")
    with pytest.raises(DamagedArtifactError, match=r"model\.safetensors"):
        objects.keep(JOB, work, files)
    assert objects.jobs() == set()


def saved(objects, tmp_path, attempt=1):
    work = take(objects, tmp_path, attempt)
    (work / "state").write_text(str(attempt))
    assert objects.work_copy(JOB, attempt, work).save()
    return f"{WORK}/{JOB}/{attempt}"


def test_a_link_is_not_followed_and_a_file_that_changes_is_not_kept(objects, tmp_path, monkeypatch):
    files = made(work := take(objects, tmp_path, 1))
    path = work / "artifact" / "model.safetensors"
    put = type(objects).put

    def put_while_somebody_writes(self, key, content):
        path.write_bytes(b"WEIGHTS")
        put(self, key, content)

    monkeypatch.setattr(type(objects), "put", put_while_somebody_writes)
    with pytest.raises(DamagedArtifactError):
        objects.keep(JOB, work, files)
    monkeypatch.setattr(type(objects), "put", put)
    assert objects.jobs() == set()
    (tmp_path / "secret").write_bytes(b"weights")
    path.unlink()
    path.symlink_to(tmp_path / "secret")
    with pytest.raises(OSError, match="symbolic links"):
        objects.keep(JOB, work, files)
    assert objects.jobs() == set()


def test_an_object_that_lost_its_end_is_not_served_as_whole(objects, tmp_path):
    files = made(work := take(objects, tmp_path, 1))
    objects.keep(JOB, work, files)
    (key,) = objects._keys(f"artifacts/{JOB}/")
    objects.store.put(key, b"wei")
    with pytest.raises(StoreAwayError, match="shorter"):
        content(objects, files[0])


def test_an_empty_file_that_is_gone_is_not_read_as_there(objects, tmp_path):
    (file,) = made(work := take(objects, tmp_path, 1), b"", "empty.txt")
    objects.keep(JOB, work, [file])
    assert content(objects, file) == b""
    objects.remove(JOB)
    with pytest.raises(FileNotFoundError):
        objects.read(JOB, file)


def test_a_bucket_that_is_gone_is_no_missing_file(s3, monkeypatch):
    for name, value in s3.variables.items():
        monkeypatch.setenv(name, value)
    there = connect("s3://no-such-bucket-here/prefix", tries=0)
    with pytest.raises(StoreAwayError):
        there.read(JOB, StoredFile("model.safetensors", 7, "0" * 64))


@pytest.mark.parametrize(
    "index",
    [
        b"{",
        b"[]",
        b'{"files": [1]}',
        b'{"files": {"state": {}}}',
        b'{"files": {"../../state": {"version": "1-1-1", "bytes": 1}}}',
        b'{"files": {"state": {"version": "../../x", "bytes": 1}}}',
    ],
)
def test_an_index_that_no_attempt_wrote_is_not_gone_on_from(objects, tmp_path, index):
    objects.store.put(f"{saved(objects, tmp_path)}/index.json", index)
    assert list(take(objects, tmp_path, 2).iterdir()) == []
    assert not (tmp_path / "state").exists()


def test_an_object_of_another_size_than_its_index_says_is_not_gone_on_from(objects, tmp_path):
    """Else no attempt could ever begin again."""
    base = saved(objects, tmp_path)
    (key,) = objects._keys(f"{base}/files/")
    objects.store.put(key, b"")
    assert list(take(objects, tmp_path, 2).iterdir()) == []


def test_a_file_that_changes_while_it_is_uploaded_is_in_no_index(objects, tmp_path, monkeypatch):
    work = take(objects, tmp_path, 1)
    (work / "data").write_bytes(b"x" * 100)
    put = type(objects).put

    def put_while_the_run_writes(self, key, content):
        put(self, key, content)
        (work / "data").write_bytes(b"")

    monkeypatch.setattr(type(objects), "put", put_while_the_run_writes)
    assert not objects.work_copy(JOB, 1, work).save()
    monkeypatch.setattr(type(objects), "put", put)
    assert list(take(objects, tmp_path, 2).iterdir()) == []


def test_a_copy_that_is_stopped_leaves_the_one_before_it(objects, tmp_path):
    work = take(objects, tmp_path, 1)
    (work / "state").write_text("1")
    copy = objects.work_copy(JOB, 1, work)
    assert copy.save()
    (work / "more").write_text("2")
    assert not copy.save(lambda: True)
    assert [path.name for path in take(objects, tmp_path, 2).iterdir()] == ["state"]


def test_work_is_kept_once_however_many_attempts_there_are(objects, tmp_path):
    for attempt in (1, 2, 3):
        saved(objects, tmp_path, attempt)
    assert {key.split("/")[2] for key in objects._keys(f"{WORK}/{JOB}/")} == {"3"}


def test_only_what_changed_is_uploaded_again(objects, tmp_path):
    work = take(objects, tmp_path, 1)
    (work / "large").write_bytes(b"x" * 1000)
    copy = objects.work_copy(JOB, 1, work)
    (work / "state.json").write_text("1")
    assert copy.save()
    first = copy.uploaded.copy()
    (work / "new").write_text("2")
    (work / "new").rename(work / "state.json")
    assert copy.save()
    assert len(first & copy.uploaded) == 1


def test_a_copy_is_of_one_moment(tmp_path):
    """A run may replace its state, and remove what it named, while links are made."""
    work = tmp_path / "work"
    work.mkdir()
    (work / "data-0").write_text("0")
    (work / "state.json").write_text("0")
    over, seen = threading.Event(), set()

    def run():
        number = 0
        while not over.is_set():
            number += 1
            (work / f"data-{number}").write_text(str(number))
            (work / "next").write_text(str(number))
            (work / "next").replace(work / "state.json")
            (work / f"data-{number - 1}").unlink()
            time.sleep(0.002)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        for _ in range(500):
            with linked(work) as files:
                if files is not None:
                    number = files["state.json"].read_text()
                    assert files[f"data-{number}"].read_text() == number
                    seen.add(number)
    finally:
        over.set()
        thread.join()
    with linked(work) as files:
        assert files is not None
    assert seen
    assert not (tmp_path / "work.snapshot").exists()


def test_what_goes_wrong_with_a_snapshot_is_told_as_it_is(tmp_path):
    (tmp_path / "work").mkdir()
    with pytest.raises(FileNotFoundError, match="of the store"), linked(tmp_path / "work"):
        raise FileNotFoundError("of the store")
    assert not (tmp_path / "work.snapshot").exists()


def test_links_of_a_run_to_other_files_are_not_copied(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("k")
    work = tmp_path / "work"
    work.mkdir()
    (work / "link").symlink_to(secret)
    (work / "hard").hardlink_to(secret)
    (work / "own").write_text("1")
    with linked(work) as files:
        assert set(files) == {"own"}


def test_a_server_that_is_gone_is_said_to_be(tmp_path, monkeypatch):
    with_nobody = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_ACCESS_KEY_ID": "k",
                   "AWS_SECRET_ACCESS_KEY": "topsecret", "AWS_REGION": "r"}  # fmt: skip
    for name, value in with_nobody.items():
        monkeypatch.setenv(name, value)
    store = connect("s3://bucket/prefix", tries=0)
    with pytest.raises(StoreAwayError, match="does not answer") as error:
        store.jobs()
    assert "topsecret" not in str(error.value)


def test_what_is_said_of_a_store_names_no_address_bucket_or_password(s3, tmp_path, monkeypatch):
    """Tenants read it: in answers, and in a job's log."""
    for name, value in s3.variables.items():
        monkeypatch.setenv(name, value)
    there = connect("s3://no-such-bucket-here/secret-prefix", tries=0)
    work = tmp_path / "work"
    work.mkdir()
    (work / "state").write_text("1")
    nowhere = s3.endpoint.replace("//", "//user:canary@").replace(str(s3.port), "9")
    monkeypatch.setenv("AWS_ENDPOINT_URL", nowhere)
    away = connect("s3://bucket/prefix", tries=0)
    for act in (
        lambda: there.work_copy(JOB, 1, work).save(),
        there.jobs,
        away.jobs,
    ):
        with pytest.raises(StoreAwayError) as error:
            act()
        for secret in ("no-such-bucket", "secret-prefix", "127.0.0.1", "canary", "AWSAccessKeyId"):
            assert secret not in str(error.value)


@pytest.mark.parametrize("address", ["gs://bucket", "s3://", "s3://B_d", "s3:/bucket"])
def test_an_address_of_something_else_is_refused(address):
    if "://" in address:
        with pytest.raises(ValueError, match="no address of an object store"):
            open_store(address)


def test_a_folder_is_a_store(tmp_path):
    assert open_store(str(tmp_path)) == LocalStore(tmp_path)
    assert FOLDER.startswith(".")
