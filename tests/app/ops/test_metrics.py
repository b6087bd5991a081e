"""Numbers for Prometheus, on both databases: what API processes and workers counted, in one exposition."""

import threading

import pytest
from prometheus_client.parser import text_string_to_metric_families

from app.db.attempts import Attempt, claim
from app.db.counters import HUB_REQUESTS, STAGE_SECONDS, count
from app.db.events import append_event
from app.db.jobs import JobRepository, NewJob
from app.db.recovery import free_lost_jobs
from app.db.session import now
from app.db.workers import note_presence
from app.ops.housekeeper import Housekeeper
from app.ops.metrics import Metrics

NEW = NewJob(request={}, recipe={}, recipe_sha256="0" * 64, model_name="m", max_attempts=1)
FAILED = {"code": "out_of_host_memory", "message": "m", "retryable": False}


def samples(database):
    """Every number a scraper reads, by name and labels; the format is checked by Prometheus's own parser."""
    found = Metrics(database).exposition().decode()
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(found)
        for sample in family.samples
    }


def started(database, lease_seconds=60):
    with database.write() as session:
        job = JobRepository(session, "t").add(NEW, now(session))
    return Attempt(database, claim(database, job.id, "w", lease_seconds))


def test_jobs_that_ended_are_counted_by_how(database):
    for _ in range(2):
        started(database).fail(FAILED)
    started(database).succeed(result={}, layers=[], metrics=[], files=[])
    started(database, lease_seconds=0)
    Housekeeper(database, None, 1.0, 15.0, 60.0).sweep()
    found = samples(database)
    assert found["spq_jobs_finished_total", "failed", "out_of_host_memory"] == 2
    assert found["spq_jobs_finished_total", "", "succeeded"] == 1
    assert found["spq_jobs_finished_total", "failed", "worker_lost"] == 1
    assert found["spq_lease_lost_total",] == 1


def test_what_was_rolled_back_is_not_counted(database):
    attempt = started(database)
    with pytest.raises(ZeroDivisionError), database.write() as session:
        job = JobRepository(session, "t").get(attempt.claim.job_id)
        job.status, job.finished_at, job.lease_expires_at = "canceled", now(session), None
        append_event(session, job, "status", {"status": "canceled"})
        raise ZeroDivisionError
    assert not any(name == "spq_jobs_finished_total" for name, *_ in samples(database))


def test_a_histogram_has_cumulative_buckets_a_count_and_a_sum(database):
    for seconds in (0.5, 2.0, 3.0, 100_000.0):
        count(database, STAGE_SECONDS.observed(seconds, "compressing"))
    found = samples(database)
    name = "spq_job_stage_duration_seconds"
    buckets = [
        found[f"{name}_bucket", le, "compressing"] for le in ("+Inf", "1.0", "5.0", "86400.0")
    ]
    assert buckets == [4, 1, 3, 3]
    assert found[f"{name}_count", "compressing"] == 4
    assert found[f"{name}_sum", "compressing"] == 100_005.5


def test_counting_at_once_loses_nothing(database):
    """Many processes add to the same rows, in different orders."""
    ends = [(operation, code) for operation in ("info", "download") for code in ("200", "503")]

    def work(number):
        for _ in range(10):
            order = ends[number % 4 :] + ends[: number % 4]
            count(database, [one for end in order for one in HUB_REQUESTS.more(*end)])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = samples(database)
    assert [found["spq_hub_requests_total", *sorted(end)] for end in ends] == [60] * 4


def test_a_run_cannot_spoil_the_numbers(database):
    """Labels and amounts may come from a run that nobody vouches for."""
    count(database, HUB_REQUESTS.more("a\n# HELP x", "200"))
    count(database, HUB_REQUESTS.more("info", "200", amount=-5))
    for nonsense in (float("nan"), float("inf")):
        count(database, STAGE_SECONDS.observed(nonsense, "load"))
    found = samples(database)
    assert found["spq_hub_requests_total", "200", "other"] == 1
    assert ("spq_hub_requests_total", "200", "info") not in found
    assert found["spq_job_stage_duration_seconds_sum", "load"] == 0


def test_workers_that_are_there_show_their_room(database):
    note_presence(database, "host:1", {"scratch_free_bytes": 7, "gpu_memory_peak_bytes": 5})
    found = samples(database)
    assert found["spq_scratch_free_bytes", "host:1"] == 7
    assert found["spq_gpu_memory_peak_bytes", "host:1"] == 5
    assert any(name == "spq_build_info" for name, *_ in found)


def test_a_number_that_cannot_be_kept_stops_nobody(database):
    with database.engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE tallies RENAME TO gone")
    try:
        attempt = started(database)
        attempt.fail(FAILED)
        assert free_lost_jobs(database) == 0
    finally:
        with database.engine.begin() as connection:
            connection.exec_driver_sql("ALTER TABLE gone RENAME TO tallies")
    with database.read() as session:
        assert JobRepository(session, "t").get(attempt.claim.job_id).status == "failed"
