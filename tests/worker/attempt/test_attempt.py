"""One job from claim to outcome, by the function that workers call: real children, real stores, both databases' laws."""

import hashlib
import json
import shutil
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest
from pydantic import SecretStr
from sqlalchemy import select, update
from sqlalchemy.exc import DBAPIError

from app.artifacts.local import LocalStore
from app.artifacts.store import StoredFile
from app.db.attempts import Attempt
from app.db.jobs import JobRepository, NewJob
from app.db.models import Job
from app.db.recovery import free_lost_jobs
from app.db.session import connect, now
from app.domain.errors import StoreAwayError
from spq_core.recipe.catalog import resolve
from tests.e2e.conftest import wait_until
from worker.attempt.attempt import run_job
from worker.children.messages import OF_FETCHER, OF_PUBLISHER, OF_RUNNER
from worker.children.process import ChildProgram
from worker.runtime import Runtime
from worker.settings import WorkerSettings

GATES = {"on_fail": "keep", "max_kl": None, "max_perplexity_ratio": None, "min_top1": None}
DOCUMENT = {
    "compression": {
        "modules": [], "seconds": 1.0, "peak_rss_bytes": 1, "ratio_to_source": 0.5, "ratio_to_fp32": 0.25,
    },
    "evaluation": None, "rows": [], "beaten_by_int8": False, "estimate": None, "load_check": {},
    "measured": {"artifact_bytes": 1}, "missing": {"code": "not_measured", "message": "not yet"},
}  # fmt: skip
MEMORY = {"code": "out_of_host_memory", "message": "more than it may", "retryable": False}


def listed(text):
    digest = hashlib.sha256(text.encode()).hexdigest()
    return {"config.json": {"bytes": len(text), "sha256": digest}}


def writes(text="{}"):
    return {"write": {"artifact/config.json": text}}


def finishes(text="{}"):
    return {"say": {"type": "finished", "document": DOCUMENT, "files": listed(text)}}


def results(text="{}"):
    return {"say": {"type": "result", "document": DOCUMENT, "files": listed(text)}}


def fails(error):
    return {"say": {"type": "error", **error}}


@dataclass(frozen=True)
class Scripted(Runtime):
    """A worker whose children follow scripts."""

    runs: list = field(default_factory=list)
    """What the runner does."""
    publishes: list = field(default_factory=list)

    def runner(self):
        return self._scripted("runs", self.runs, OF_RUNNER)

    def publisher(self):
        return self._scripted("publishes", self.publishes, OF_PUBLISHER)

    def fetcher(self):
        return self._scripted("fetches", [], OF_FETCHER)

    def _scripted(self, name, steps, says):
        script = self.settings.scratch_dir.parent / f"{name}-{id(self)}.json"
        script.write_text(json.dumps(steps))
        environment = {"SPQ_TEST_SCRIPT": str(script)}
        settings = self.settings
        return ChildProgram(
            "tests.worker.attempt.scripted_child",
            environment,
            60.0,
            settings.grace_seconds,
            says=says,
        )


@pytest.fixture
def database(sqlite_url):
    made = connect(sqlite_url)
    yield made
    made.dispose()


@pytest.fixture
def worker(database, store, tmp_path, tiny_llama):
    """Make a worker with a disk of its own."""
    made = []

    def worker(*runs, publishes=(), store=store, checkpoint_seconds=3600.0):
        disk = tmp_path / f"disk-{len(made)}"
        disk.mkdir()
        settings = WorkerSettings(
            database_url="sqlite://", broker_url="redis://localhost", artifact_dir=tmp_path / "artifacts",
            scratch_dir=disk / "scratch", model_dirs=str(tiny_llama.parent), heartbeat_seconds=0.1,
            checkpoint_seconds=checkpoint_seconds, grace_seconds=1.0, hub_token=SecretStr("hf_token"),
        )  # fmt: skip
        made.append(
            Scripted(
                settings,
                database,
                store,
                f"w{len(made)}",
                runs=list(runs),
                publishes=list(publishes),
            )
        )
        return made[-1]

    return worker


@pytest.fixture
def submit(database, tiny_llama):
    def submit(output=None, **gates):
        request = {
            "model": {"repo_id": None, "path": tiny_llama.name, "revision": "main"},
            "output": output, "evaluation": {"perplexity": []},
        }  # fmt: skip
        recipe = resolve("int8").document()
        recipe["gates"] |= GATES | gates
        new = NewJob(
            request=request, recipe=recipe, recipe_sha256="d", model_name="m", max_attempts=3
        )
        with database.write() as session:
            return JobRepository(session, "t").add(new, now(session)).id

    return submit


@pytest.fixture
def job_id(submit):
    return submit()


def load(database, job_id):
    with database.read() as session:
        return JobRepository(session, "t").get(job_id)


def kept(database, store, job_id):
    """Content of the artifact's files, by name, as a client gets them."""
    with database.read() as session:
        files = JobRepository(session, "t").artifact_files(job_id)
        rows = [StoredFile(file.path, file.bytes, file.sha256) for file in files]
    return {file.path: b"".join(store.read(job_id, file)).decode() for file in rows}


def lose(database, job_id):
    """Its worker was not heard of for too long, though it may have said something just now."""

    def is_lost():
        with database.write() as session:
            ago = now(session) - timedelta(seconds=1)
            session.execute(update(Job).where(Job.id == job_id).values(lease_expires_at=ago))
        free_lost_jobs(database)
        return load(database, job_id).status == "queued"

    wait_until(is_lost, 10, "the lease's end")


class Meanwhile:
    """A store at which something else happens at the moment an attempt wants to keep its artifact."""

    def __init__(self, store, happens):
        self._store, self._happens = store, happens

    def __getattr__(self, name):
        return getattr(self._store, name)

    def keep(self, *arguments):
        self._happens()
        return self._store.keep(*arguments)


def test_a_job_that_goes_well_leaves_its_artifact_and_nothing_else(database, store, worker, job_id):
    run_job(job_id, worker(writes(), results()))
    assert load(database, job_id).status == "succeeded"
    assert kept(database, store, job_id) == {"config.json": "{}"}
    assert store.jobs() == {job_id}
    assert store.jobs_with_work() == set()


def test_an_attempt_frozen_at_the_last_moment_harms_no_later_one(database, store, worker, job_id):
    def another_ends_the_job():
        lose(database, job_id)
        run_job(job_id, worker(writes("[2]"), results("[2]")))

    frozen = Meanwhile(store, another_ends_the_job)
    run_job(job_id, worker(writes("[1, 1]"), results("[1, 1]"), store=frozen))
    job = load(database, job_id)
    assert (job.status, job.attempt, job.error) == ("succeeded", 2, None)
    assert kept(database, store, job_id) == {"config.json": "[2]"}
    assert store.jobs_with_work() == set()
    if not isinstance(store, LocalStore):  # nor does what it uploaded stay
        assert len(store._keys(f"artifacts/{job_id}/")) == 1


def test_another_attempt_goes_on_where_a_killed_one_was(database, store, worker, job_id):
    run_job(job_id, worker({"write": {"artifact.state/state.json": "7"}}, {"die": 9}))
    assert load(database, job_id).status == "queued"
    goes_on = {"shell": "grep -q 7 artifact.state/state.json"}
    run_job(job_id, worker(goes_on, writes(), results()))
    assert load(database, job_id).status == "succeeded"
    assert store.jobs_with_work() == set()


def test_a_worker_on_another_machine_is_given_the_figures_of_the_first(worker, submit, tmp_path):
    digest, name = "a" * 64, f"scores-{'1' * 64}.json"
    leaves = {"leave": {f"{digest}/{name}": '{"kl": 1}'}}
    run_job(submit(), worker(leaves, writes(), results()))
    run_job(submit(), worker(writes(), results()))
    (file,) = (tmp_path / "disk-1" / "scratch" / "figures").glob(f"*/{digest}/{name}")
    assert file.read_text() == '{"kl": 1}'


def test_another_attempt_goes_on_though_the_first_machine_is_gone(
    database, store, worker, job_id, tmp_path
):
    """It was switched off: what it copied while it ran is all there is."""
    going, second = tmp_path / "going", worker(
        {"shell": "grep -q 7 artifact.state/state.json"}, writes(), results()
    )  # fmt: skip
    first = worker(
        {"write": {"artifact.state/state.json": "7"}},
        {"touch and wait": str(going)},
        checkpoint_seconds=0.2,
    )
    thread = threading.Thread(target=run_job, args=(job_id, first))
    thread.start()
    wait_until(going.exists, 30, "the runner")
    if not isinstance(store, LocalStore):
        wait_until(lambda: "index" in str(store._keys(f"work/{job_id}/")), 30, "a copy")
        shutil.rmtree(first.settings.scratch_dir, ignore_errors=True)
    lose(database, job_id)
    run_job(job_id, second)
    going.unlink()
    thread.join()
    assert load(database, job_id).status == "succeeded"
    assert kept(database, store, job_id) == {"config.json": "{}"}


def test_a_worker_that_is_stopped_hands_its_work_on(database, store, worker, job_id, tmp_path):
    going = tmp_path / "going"
    first = worker({"write": {"artifact.state/state.json": "7"}}, {"touch and wait": str(going)})
    thread = threading.Thread(target=run_job, args=(job_id, first))
    thread.start()
    wait_until(going.exists, 30, "the runner")
    first.stopping.set()
    thread.join()
    job = load(database, job_id)
    assert (job.status, job.max_attempts) == ("queued", 4)
    run_job(job_id, worker({"shell": "test -f artifact.state/state.json"}, writes(), results()))
    assert load(database, job_id).status == "succeeded"


def test_a_store_that_does_not_answer_costs_an_attempt_and_no_job(database, store, worker, job_id):
    def away():
        raise StoreAwayError("no route")

    run_job(job_id, worker(writes(), results(), store=Meanwhile(store, away)))
    assert load(database, job_id).status == "queued"
    run_job(job_id, worker(writes(), results()))
    assert load(database, job_id).status == "succeeded"


@pytest.mark.parametrize("error", [StoreAwayError("no answer"), RuntimeError("of the library")])
def test_an_artifact_behind_a_gate_is_not_lost_with_the_store(
    database, store, worker, submit, error
):
    """Keeping what failed is part of the outcome; if it fails, too, there is an outcome all the same."""
    job_id = submit(on_fail="keep")
    gate = fails({"code": "quality_gate_failed", "message": "KL", "retryable": False})

    def away():
        raise error

    run_job(job_id, worker(writes(), results(), gate, store=Meanwhile(store, away)))
    job = load(database, job_id)
    if isinstance(error, StoreAwayError):
        assert job.status == "queued"
        run_job(job_id, worker(writes(), results(), gate))
        assert kept(database, store, job_id) == {"config.json": "{}"}
    else:
        assert (job.status, job.error["code"]) == ("failed", "internal")


def test_a_gate_that_fails_before_there_is_an_artifact_is_the_jobs_error(database, worker, job_id):
    """Though the recipe asks to keep artifacts that fail."""
    error = {"code": "load_gate_failed", "message": "the toy differs", "retryable": False}
    run_job(job_id, worker(fails(error)))
    job = load(database, job_id)
    assert (job.status, job.error) == ("failed", error)


@pytest.mark.parametrize("on_fail", ["keep", "discard"])
def test_an_artifact_behind_a_failed_gate_is_kept_if_the_recipe_says_so(
    database, store, worker, submit, on_fail
):
    job_id = submit(on_fail=on_fail)
    error = {"code": "quality_gate_failed", "message": "KL", "retryable": False}
    run_job(job_id, worker(writes(), results(), fails(error)))
    assert load(database, job_id).error == error
    assert kept(database, store, job_id) == ({"config.json": "{}"} if on_fail == "keep" else {})
    assert store.jobs() == ({job_id} if on_fail == "keep" else set())


def test_an_artifact_canceled_while_it_was_published_is_gone(
    database, store, worker, submit, tmp_path
):
    job_id, going = submit({"repo_id": "me/out", "private": True}), tmp_path / "going"
    publishing = worker(writes(), results(), publishes=[{"touch and wait": str(going)}])
    thread = threading.Thread(target=run_job, args=(job_id, publishing))
    thread.start()
    wait_until(going.exists, 30, "the runner")
    assert store.jobs() == {job_id}
    with database.write() as session:
        JobRepository(session, "t").cancel(job_id)
    thread.join()
    assert load(database, job_id).status == "canceled"
    assert store.jobs() == store.jobs_with_work() == set()


@pytest.mark.parametrize(
    "orig",
    [
        psycopg.errors.ReadOnlySqlTransaction(),
        psycopg.errors.IdleInTransactionSessionTimeout(),
        psycopg.errors.AdminShutdown(),
    ],
)
@pytest.mark.parametrize("store", ["local"], indirect=True)
def test_a_database_that_changes_its_server_costs_no_job(
    database, store, worker, job_id, monkeypatch, orig
):
    """These are not all of the class that a lost connection has."""
    monkeypatch.setattr("worker.attempt.record.DATABASE_PAUSE_SECONDS", 0.01)
    failures = iter([DBAPIError.instance("UPDATE", {}, orig, psycopg.Error)] * 3)
    renew = Attempt.renew

    def flaky(self, lease_seconds):
        for error in failures:
            raise error
        return renew(self, lease_seconds)

    monkeypatch.setattr(Attempt, "renew", flaky)
    run_job(job_id, worker(writes(), results()))
    assert load(database, job_id).status == "succeeded"
    assert next(failures, None) is None


@pytest.mark.parametrize("store", ["local"], indirect=True)
def test_a_statement_that_is_wrong_is_not_tried_without_end(database, worker, job_id, monkeypatch):
    wrong = DBAPIError.instance("UPDATE", {}, psycopg.errors.UndefinedColumn(), psycopg.Error)
    monkeypatch.setattr(Attempt, "renew", lambda *_: (_ for _ in ()).throw(wrong))
    with suppress(DBAPIError):
        run_job(job_id, worker(writes(), results()))
    assert load(database, job_id).status == "running", "its lease ends, and another attempt begins"


TRICKS = {
    "link": "rm artifact/config.json && ln -s {secret} artifact/config.json",
    "hard link": "rm artifact/config.json && ln {secret} artifact/config.json",
    "folder": "rm artifact/config.json && mkdir artifact/config.json",
    "more": "ln -s {secret} artifact/id",
    "less": "rm artifact/config.json",
    "size": "echo more >> artifact/config.json",
    "all of it": "rm -r artifact && ln -s {folder} artifact",
}


@pytest.mark.parametrize("trick", TRICKS)
def test_an_artifact_of_anything_but_its_own_files_is_not_kept(
    database, store, worker, job_id, tmp_path, trick
):
    """A run that somebody took over could have other files of this machine served and published."""
    secret = tmp_path / "secret-keys"
    secret.write_text("kk")
    command = TRICKS[trick].format(secret=secret, folder=tmp_path)
    run_job(job_id, worker(writes(), results(), {"shell": command}))
    job = load(database, job_id)
    assert (job.status, job.error["code"]) == ("failed", "unsafe_artifact")
    assert store.jobs() == set()
    assert secret.read_text() == "kk"


@pytest.mark.parametrize("store", ["object"], indirect=True)
def test_content_that_is_not_the_listed_one_is_not_kept(database, store, worker, job_id):
    run_job(job_id, worker(writes("[]"), results("{}")))
    assert load(database, job_id).error["code"] == "unsafe_artifact"
    assert store.jobs() == set()


@pytest.mark.parametrize("store", ["local"], indirect=True)
@pytest.mark.parametrize(
    "document", [{}, {"measured": {}, "estimate": {"seconds": {"expected": 1}}}]
)
def test_a_report_that_makes_no_sense_ends_the_job_once(database, worker, job_id, document):
    told = {"type": "result", "document": document, "files": listed("{}")}
    run_job(job_id, worker(writes(), {"say": told}))
    assert load(database, job_id).error["code"] == "internal"


def test_memory_that_measuring_lacks_costs_figures_and_no_artifact(database, store, worker, job_id):
    run_job(job_id, worker(writes(), finishes(), fails(MEMORY)))
    job = load(database, job_id)
    assert job.status == "succeeded"
    assert job.result["missing"]["code"] == "out_of_host_memory"
    assert kept(database, store, job_id) == {"config.json": "{}"}


@pytest.mark.parametrize("store", ["local"], indirect=True)
def test_gates_without_figures_fail_the_job_and_keep_the_artifact(database, store, worker, submit):
    job_id = submit(max_kl=0.1, on_fail="discard")
    run_job(job_id, worker(writes(), finishes(), fails(MEMORY)))
    job = load(database, job_id)
    assert (job.status, job.error["code"]) == ("failed", "evaluation_failed")
    assert kept(database, store, job_id) == {"config.json": "{}"}


def test_a_run_killed_while_it_measures_is_tried_again_and_then_a_result(
    database, store, worker, job_id
):
    for _ in range(2):
        run_job(job_id, worker(writes(), finishes(), {"die": 9}))
        assert load(database, job_id).status == "queued"
        assert store.jobs() == set()
    run_job(job_id, worker(writes(), finishes(), {"die": 9}))
    job = load(database, job_id)
    assert (job.status, job.result["missing"]["code"]) == ("succeeded", "runner_crashed")
    assert kept(database, store, job_id) == {"config.json": "{}"}


@pytest.mark.parametrize("store", ["local"], indirect=True)
def test_a_clients_time_limit_ends_the_job_and_keeps_what_is_finished(
    database, store, worker, job_id
):
    overdue = {"code": "deadline_exceeded", "message": "its time is up", "retryable": False}
    run_job(job_id, worker(writes(), finishes(), fails(overdue)))
    assert load(database, job_id).error == overdue
    assert kept(database, store, job_id) == {"config.json": "{}"}


def test_a_job_that_is_not_queued_is_left_alone(database, worker, job_id):
    run_job(job_id, worker(writes(), results()))
    run_job(job_id, worker(fails(MEMORY)))
    with database.read() as session:
        assert session.scalar(select(Job.attempt).where(Job.id == job_id)) == 1


def test_a_model_that_is_not_there_fails_the_job_before_any_work(
    database, worker, submit, tiny_llama
):
    job_id = submit()
    gone = worker(writes(), results())
    object.__setattr__(
        gone, "settings", gone.settings.model_copy(update={"model_dirs": str(Path("/nowhere"))})
    )
    run_job(job_id, gone)
    assert load(database, job_id).error["code"] == "model_not_found"
