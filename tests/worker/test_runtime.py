from dataclasses import replace

import pytest

from app.db.attempts import Claim
from app.db.workers import present_workers
from tests.e2e.conftest import wait_until
from worker.attempt.credentials import hub_token
from worker.errors import ChildFailedError
from worker.presence import Presence
from worker.runtime import Runtime
from worker.settings import WorkerSettings
from worker.threads import PASSIVE_THREADS, SPINNING_THREADS


def runtime(tmp_path, **settings):
    return Runtime(
        WorkerSettings(
            database_url=f"sqlite:///{tmp_path / 'spq.db'}", artifact_dir=tmp_path / "artifacts",
            scratch_dir=tmp_path / "scratch", broker_url="redis://localhost", **settings,
        ),
        database=None, store=None, worker_id="w",
    )  # fmt: skip


@pytest.mark.parametrize("spin", [False, True])
def test_only_a_runner_that_is_alone_spins(tmp_path, spin):
    held = runtime(tmp_path, spin=spin, threads=2)
    runner = held.runner().extra_environment
    assert (runner.get("GOMP_SPINCOUNT") == SPINNING_THREADS["GOMP_SPINCOUNT"]) == spin
    assert runner["OMP_NUM_THREADS"] == "2"
    for other in (held.fetcher(), held.publisher()):
        assert "GOMP_SPINCOUNT" not in other.extra_environment
    assert PASSIVE_THREADS == {"OMP_WAIT_POLICY": "PASSIVE"}


def test_a_jobs_own_token_is_never_replaced_by_the_services(tmp_path):
    """Its row may be gone: an older version was in between, or the database was restored without it."""
    settings = runtime(tmp_path, hub_token="hf_service").settings
    given = Claim(
        job_id="j", attempt=1, max_attempts=3, request={"hub_token": "**********"}, recipe={}, tenant="t",
        sealed_token=None, traceparent=None,
    )  # fmt: skip
    with pytest.raises(ChildFailedError) as refused:
        hub_token(settings, given)
    assert refused.value.error["code"] == "hub_token_unreadable"
    assert hub_token(settings, replace(given, request={"hub_token": None})) == "hf_service"


def test_a_fresh_worker_is_seen_before_its_first_job(database, tmp_path):
    """Its scratch folder is not there yet."""
    presence = Presence(database, "host:1", {"isolation": []}, tmp_path / "not yet" / "scratch")
    presence.start()
    try:
        wait_until(lambda: seen(database), 5, "the worker")
        assert seen(database)[0].facts["scratch_free_bytes"] > 0
    finally:
        presence.stop()
    assert seen(database) == []


def seen(database):
    with database.read() as session:
        return present_workers(session)
