"""An artifact's way into the store, while another attempt has the job."""

import shutil
from types import SimpleNamespace

import psycopg
import pytest
from sqlalchemy.exc import DBAPIError

from app.artifacts.workspace import FOLDER, take_over
from app.db.attempts import Attempt, claim
from app.db.jobs import JobRepository, NewJob
from app.db.recovery import free_lost_jobs
from app.db.session import connect, now
from worker.attempt.attempt import _JobRun
from worker.attempt.spans import AttemptSpans
from worker.attempt.telemetry import Observed
from worker.children.messages import File, Finished, Source
from worker.errors import CancelRequestedError, ChildFailedError, ChildRetryError
from worker.storage.artifact_check import move_into_store
from worker.storage.scratch import scratch_folder

NEW = NewJob(
    request={"output": None},
    recipe={
        "gates": {"on_fail": "keep", "max_kl": None, "max_perplexity_ratio": None, "min_top1": None}
    },
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
    run.files = {"config.json": File(bytes=1, sha256="0" * 64)}
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
    outcome_of(first, monkeypatch)
    assert load(database, job_id).status == "running"
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
    monkeypatch.setattr("worker.attempt.attempt.DATABASE_PAUSE_SECONDS", 0.01)
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


FINISHED = Finished.model_validate({
    "document": {
        "compression": {
            "modules": [], "seconds": 1.0, "peak_rss_bytes": 1, "ratio_to_source": 0.5, "ratio_to_fp32": 0.25,
        },
        "evaluation": None, "rows": [], "beaten_by_int8": False, "estimate": None,
        "measured": {"artifact_bytes": 1}, "missing": {"code": "not_measured", "message": "not yet"},
    },
    "files": {"config.json": {"bytes": 1, "sha256": "0" * 64}},
})  # fmt: skip


def finishing_then(error):
    """A runner that finishes its artifact, and ends like this while it measures."""

    def started(self, child, *, drains=True):
        del child, drains
        self.finished = FINISHED
        raise error

    return started


class NoChild:
    """Stands for a program that is never started."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


def measuring_ends(run, monkeypatch, error):
    """Bring an attempt to its outcome whose runner ends so while it measures."""
    program = SimpleNamespace(
        home=lambda scratch: scratch, started=lambda *_args, **_named: NoChild()
    )
    run.runtime.runner = lambda: program
    run.runtime.settings.data_dir = None
    run.runtime.settings.run_reads = ""
    run.runtime.settings.threads = None
    run.runtime.settings.device = "cpu"
    run.source = Source(folder=str(run.scratch), name="tiny")
    run.attempt.claim.request["evaluation"] = {}
    run.files = {}
    monkeypatch.setattr(_JobRun, "_fetch", lambda _self: None)
    monkeypatch.setattr(_JobRun, "_follow", finishing_then(error))
    run.to_outcome()


MEMORY = {
    "code": "out_of_host_memory",
    "message": "more than SPQ_MAX_RUN_BYTES",
    "retryable": False,
}


def test_memory_that_measuring_lacks_costs_figures_and_no_artifact(
    database, job_id, tmp_path, monkeypatch
):
    run = begin(database, job_id, tmp_path)
    measuring_ends(run, monkeypatch, ChildFailedError(MEMORY))
    job = load(database, job_id)
    assert job.status == "succeeded"
    assert job.result["missing"]["code"] == "out_of_host_memory"
    assert (tmp_path / job_id / "config.json").is_file()


def test_gates_without_figures_fail_the_job_and_keep_the_artifact(
    database, job_id, tmp_path, monkeypatch
):
    run = begin(database, job_id, tmp_path)
    run.attempt.claim.recipe["gates"] |= {"max_kl": 0.1, "on_fail": "discard"}
    measuring_ends(run, monkeypatch, ChildFailedError(MEMORY))
    job = load(database, job_id)
    assert (job.status, job.error["code"]) == ("failed", "evaluation_failed")
    assert (tmp_path / job_id / "config.json").is_file()
    with database.read() as session:
        assert JobRepository(session, "t").artifact_files(job_id)


def test_a_run_killed_while_it_measures_is_tried_again_and_then_a_result(
    database, job_id, tmp_path, monkeypatch
):
    crash = ChildRetryError("runner_crashed", "ended with status -9")
    for _ in range(2):
        measuring_ends(begin(database, job_id, tmp_path), monkeypatch, crash)
        assert load(database, job_id).status == "queued"
        assert not (tmp_path / job_id).exists()
    measuring_ends(begin(database, job_id, tmp_path), monkeypatch, crash)
    job = load(database, job_id)
    assert (job.status, job.result["missing"]["code"]) == ("succeeded", "runner_crashed")
    assert (tmp_path / job_id / "config.json").is_file()


def test_a_clients_time_limit_ends_the_job_and_keeps_what_is_finished(
    database, job_id, tmp_path, monkeypatch
):
    overdue = {"code": "deadline_exceeded", "message": "its time is up", "retryable": False}
    measuring_ends(begin(database, job_id, tmp_path), monkeypatch, ChildFailedError(overdue))
    assert load(database, job_id).error == overdue
    assert (tmp_path / job_id / "config.json").is_file()


@pytest.mark.parametrize("step", ["_fetch", "_compress", "_publish"])
def test_an_error_that_came_of_losing_the_job_is_no_bug(
    database, job_id, tmp_path, monkeypatch, step
):
    """Its folders were removed by whoever has the job now; so whatever is raised, the job is asked first."""
    run = begin(database, job_id, tmp_path, lease_seconds=0.0)
    free_lost_jobs(database)
    begin(database, job_id, tmp_path)
    bugs = []
    monkeypatch.setattr(_JobRun, "_bug", lambda _self, error: bugs.append(error))
    lost = FileNotFoundError("no such folder")
    outcome_of(run, monkeypatch, **{step: raising(lost)})
    assert bugs == []
    assert load(database, job_id).status == "running"


def test_a_slow_attempt_leaves_the_folder_of_a_later_one_alone(tmp_path):
    with scratch_folder(tmp_path, "job_1", 2) as later, scratch_folder(tmp_path, "job_1", 1):
        assert later.is_dir()
    (tmp_path / "job_1.1").mkdir()
    with scratch_folder(tmp_path, "job_1", 2):
        assert not (tmp_path / "job_1.1").exists()


def test_an_artifact_that_appears_in_the_store_meanwhile_is_moved_aside(tmp_path, monkeypatch):
    work, target = tmp_path / "work", tmp_path / "target"
    (work / "artifact").mkdir(parents=True)
    (work / "artifact" / "mine").touch()
    target.mkdir()
    (target / "theirs").touch()
    looks = iter([False])
    seen = type(target).exists
    monkeypatch.setattr(
        type(target), "exists", lambda path: next(looks, None) is not False and seen(path)
    )
    move_into_store(work, target)
    assert [path.name for path in target.iterdir()] == ["mine"]
