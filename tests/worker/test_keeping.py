"""An artifact's way into the store, while another attempt has the job."""

import shutil
from types import SimpleNamespace

import psycopg
import pytest
from sqlalchemy.exc import DBAPIError

from app.db.attempts import Attempt, claim
from app.db.housekeeping import free_lost_jobs
from app.db.jobs import JobRepository, NewJob
from app.db.session import connect, now
from app.domain.errors import FencedError
from app.workspace import FOLDER, take_over
from worker.compression import _JobRun
from worker.errors import CancelRequestedError, ChildFailedError
from worker.observed import Observed
from worker.spans import AttemptSpans

NEW = NewJob(
    request={"output": None},
    recipe={"gates": {"on_fail": "keep"}},
    recipe_sha256="d",
    model_name="m",
    max_attempts=3,
)


@pytest.fixture
def database(sqlite_url):
    made = connect(sqlite_url)
    yield made
    made.dispose()


def begin(database, job_id, store, lease_seconds=60.0):
    """An attempt whose runner has finished: its artifact says which one it is."""
    attempt = Attempt(database, claim(database, job_id, "w", lease_seconds))
    number = attempt.claim.attempt
    artifact = take_over(store, job_id, number) / "artifact"
    artifact.mkdir(exist_ok=True)
    (artifact / "config.json").write_text(str(number))
    settings = SimpleNamespace(artifact_dir=store, lease_seconds=lease_seconds)
    pulse = SimpleNamespace(lost=SimpleNamespace(is_set=lambda: False), overran=lambda: False)
    runtime = SimpleNamespace(settings=settings, database=database, facts={})
    run = _JobRun(runtime, attempt, pulse, store, Observed(runtime, AttemptSpans(attempt.claim)))
    run.files = {"config.json": {"bytes": 1, "sha256": "0" * 64}}
    return run


@pytest.fixture
def job_id(database):
    with database.write() as session:
        return JobRepository(session, "t").add(NEW, now(session)).id


def test_an_attempt_frozen_at_the_last_moment_harms_no_later_one(
    database, job_id, tmp_path, monkeypatch
):
    first = begin(database, job_id, tmp_path, lease_seconds=0.0)
    renewed = Attempt.renew

    def renew_and_freeze(self, lease_seconds):
        """The first attempt may still write when it asks; then its lease ends, and a second one runs."""
        wish = renewed(self, lease_seconds)
        monkeypatch.setattr(Attempt, "renew", renewed)
        free_lost_jobs(database)
        begin(database, job_id, tmp_path)._keep_artifact()
        return wish

    monkeypatch.setattr(Attempt, "renew", renew_and_freeze)
    with pytest.raises(FencedError):
        first._keep_artifact()
    assert (tmp_path / job_id / "config.json").read_text() == "2"


def test_what_a_lost_attempt_kept_is_replaced(database, job_id, tmp_path):
    begin(database, job_id, tmp_path, lease_seconds=0.0)._keep_artifact()
    assert (tmp_path / job_id / "config.json").read_text() == "1"
    free_lost_jobs(database)
    begin(database, job_id, tmp_path)._keep_artifact()
    assert (tmp_path / job_id / "config.json").read_text() == "2"


def outcome_of(run, monkeypatch, **steps):
    """Run an attempt whose steps do what is said here."""
    for name in ("_fetch", "_compress", "_publish"):
        monkeypatch.setattr(_JobRun, name, steps.get(name, lambda _self: None))
    run.to_outcome()


def raising(error):
    def step(_self):
        raise error

    return step


def load(database, job_id):
    with database.read() as session:
        return JobRepository(session, "t").get(job_id)


def test_a_gate_that_fails_before_there_is_an_artifact_is_the_jobs_error(
    database, job_id, tmp_path, monkeypatch
):
    """Though the recipe asks to keep artifacts that fail."""
    run = begin(database, job_id, tmp_path)
    shutil.rmtree(tmp_path / FOLDER / f"{job_id}.1" / "artifact")
    error = {"code": "load_gate_failed", "message": "the toy differs", "retryable": False}
    outcome_of(run, monkeypatch, _compress=raising(ChildFailedError(error)))
    job = load(database, job_id)
    assert (job.status, job.error) == ("failed", error)


def test_an_artifact_canceled_while_it_was_published_is_gone(
    database, job_id, tmp_path, monkeypatch
):
    run = begin(database, job_id, tmp_path)
    with database.write() as session:
        JobRepository(session, "t").cancel(job_id)
    outcome_of(run, monkeypatch, _publish=raising(CancelRequestedError()))
    assert load(database, job_id).status == "canceled"
    assert not (tmp_path / job_id).exists()
    assert list((tmp_path / FOLDER).iterdir()) == []


@pytest.mark.parametrize(
    "orig",
    [
        psycopg.errors.ReadOnlySqlTransaction(),
        psycopg.errors.IdleInTransactionSessionTimeout(),
        psycopg.errors.AdminShutdown(),
    ],
)
def test_a_database_that_changes_its_server_costs_no_job(
    database, job_id, tmp_path, monkeypatch, orig
):
    """These are not all of the class that a lost connection has."""
    run = begin(database, job_id, tmp_path)
    monkeypatch.setattr("worker.compression.DATABASE_PAUSE_SECONDS", 0.01)
    failures = iter([DBAPIError.instance("UPDATE", {}, orig, psycopg.Error)] * 3)
    renew = Attempt.renew

    def flaky(self, lease_seconds):
        for error in failures:
            raise error
        return renew(self, lease_seconds)

    monkeypatch.setattr(Attempt, "renew", flaky)
    run._keep_artifact()
    assert (tmp_path / job_id / "config.json").exists()
    assert load(database, job_id).status == "running"


def test_a_statement_that_is_wrong_is_not_tried_without_end(
    database, job_id, tmp_path, monkeypatch
):
    run = begin(database, job_id, tmp_path)
    wrong = DBAPIError.instance("UPDATE", {}, psycopg.errors.UndefinedColumn(), psycopg.Error)
    monkeypatch.setattr(Attempt, "renew", lambda *_: (_ for _ in ()).throw(wrong))
    with pytest.raises(DBAPIError):
        run._keep_artifact()


@pytest.mark.parametrize(
    "trick", ["link", "hard link", "folder", "more", "less", "size", "all of it"]
)
def test_an_artifact_of_anything_but_its_own_files_is_not_kept(
    database, job_id, tmp_path, monkeypatch, trick
):
    """A run that somebody took over could have other files of this machine served and published."""
    secret = tmp_path / "secret-keys"
    secret.write_text("k")
    run = begin(database, job_id, tmp_path)
    artifact = tmp_path / FOLDER / f"{job_id}.1" / "artifact"
    file = artifact / "config.json"
    if trick in ("link", "hard link", "folder", "less"):
        file.unlink()
    match trick:
        case "link":
            file.symlink_to(secret)
        case "hard link":
            file.hardlink_to(secret)
        case "folder":
            file.mkdir()
        case "more":
            (artifact / "id").symlink_to(secret)
        case "size":
            file.write_text("22")
        case "all of it":
            shutil.rmtree(artifact)
            artifact.symlink_to(tmp_path)
    outcome_of(run, monkeypatch)
    job = load(database, job_id)
    assert (job.status, job.error["code"]) == ("failed", "unsafe_artifact")
    assert not (tmp_path / job_id).exists()
    assert secret.read_text() == "k"


@pytest.mark.parametrize(
    "document", [{}, {"measured": {}, "estimate": {"seconds": {"expected": 1}}}]
)
def test_a_report_that_makes_no_sense_ends_the_job_once(
    database, job_id, tmp_path, monkeypatch, document
):
    run = begin(database, job_id, tmp_path)
    run.document = document
    outcome_of(run, monkeypatch)
    assert load(database, job_id).error["code"] == "internal"
