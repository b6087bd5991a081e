"""An artifact's way into the store, while another attempt has the job."""

from types import SimpleNamespace

import pytest

from app.db.attempts import Attempt, claim
from app.db.housekeeping import free_lost_jobs
from app.db.jobs import JobRepository, NewJob
from app.db.session import connect, now
from app.domain.errors import FencedError
from app.workspace import take_over
from worker.compression import _JobRun

NEW = NewJob(request={}, recipe={}, recipe_sha256="d", model_name="m", max_attempts=3)


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
    return _JobRun(SimpleNamespace(settings=settings), attempt, pulse, store, None)


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
