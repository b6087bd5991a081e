"""Claims, fences and housekeeping on both databases, with real concurrency."""

import threading
import time
from dataclasses import replace
from datetime import timedelta

import pytest
from sqlalchemy import delete, select, text, update
from sqlalchemy.exc import IntegrityError

from app.db.attempts import Attempt, claim
from app.db.jobs import JobRepository, NewJob
from app.db.models import Job, JobEvent, OutboxMessage
from app.db.recovery import (
    fail_overdue_jobs,
    free_lost_jobs,
    notify_forgotten_jobs,
    take_due_messages,
)
from app.db.session import now
from app.domain.errors import FencedError
from app.domain.job_status import OWNED, TERMINAL, JobStatus
from app.ops.housekeeper import Housekeeper

NEW = NewJob(request={}, recipe={}, recipe_sha256="0" * 64, model_name="m", max_attempts=2)


class RecordingQueue:
    def __init__(self):
        self.sent, self.broken = [], False

    def notify(self, job_id):
        if self.broken:
            raise ConnectionRefusedError
        self.sent.append(job_id)


@pytest.fixture
def keeper(database):
    return Housekeeper(database, RecordingQueue(), 1.0, 15.0, 60.0)


def add(database):
    with database.write() as session:
        return JobRepository(session, "t").add(NEW, now(session)).id


def load(database, job_id):
    with database.read() as session:
        return JobRepository(session, "t").get(job_id)


def expire(database, job_id):
    with database.write() as session:
        past = session.scalar(select(Job.created_at).where(Job.id == job_id))
        session.execute(update(Job).where(Job.id == job_id).values(lease_expires_at=past))


def test_one_of_many_claimers_wins_each_job(database):
    jobs = [add(database) for _ in range(10)]
    winners = []

    def work(name):
        winners.extend(one.job_id for job in jobs if (one := claim(database, job, name, 60)))

    threads = [threading.Thread(target=work, args=(f"w{number}",)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(winners) == sorted(jobs)


def test_an_attempt_that_lost_its_job_can_write_nothing(database):
    job = add(database)
    first = Attempt(database, claim(database, job, "w1", 60))
    expire(database, job)
    assert free_lost_jobs(database) == 1
    second = Attempt(database, claim(database, job, "w2", 60))
    error = {"code": "x", "message": "y", "retryable": False}
    writes = (
        lambda: first.renew(60), lambda: first.progress("s", {}), lambda: first.log(["l"]),
        first.begin_commit, first.cancel, lambda: first.fail(error), lambda: first.give_back("r"),
        lambda: first.succeed(result={}, layers=[], metrics=[], files=[]),
    )  # fmt: skip
    for write in writes:
        with pytest.raises(FencedError):
            write()
    assert load(database, job).attempt == 2
    second.succeed(result={}, layers=[], metrics=[], files=[])
    for write in (lambda: second.renew(60), lambda: second.fail(error)):
        with pytest.raises(FencedError):
            write()
    assert load(database, job).status == JobStatus.SUCCEEDED


def test_a_job_without_attempts_left_fails_with_the_reason(database):
    job = add(database)
    for _ in range(2):
        assert claim(database, job, "w", 60)
        expire(database, job)
        free_lost_jobs(database)
    ended = load(database, job)
    assert ended.status == JobStatus.FAILED
    assert ended.error["code"] == "worker_lost"
    assert claim(database, job, "w", 60) is None


def test_a_lost_job_that_was_being_cancelled_ends_cancelled(database):
    job = add(database)
    claim(database, job, "w", 60)
    with database.write() as session:
        JobRepository(session, "t").cancel(job)
    expire(database, job)
    free_lost_jobs(database)
    assert load(database, job).status == JobStatus.CANCELED


def test_live_leases_are_left_alone(database):
    job = add(database)
    claim(database, job, "w", 60)
    assert free_lost_jobs(database) == 0


def test_event_numbers_have_no_gap_under_concurrency(database):
    job = add(database)
    attempt = Attempt(database, claim(database, job, "w", 60))

    def work():
        for number in range(10):
            attempt.progress("s", {"n": number})

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with database.read() as session:
        numbers = list(
            session.scalars(
                select(JobEvent.seq).where(JobEvent.job_id == job).order_by(JobEvent.seq)
            )
        )
    assert numbers == list(range(1, 43))


def test_messages_wait_for_the_broker_and_none_is_lost(database, keeper):
    jobs = [add(database) for _ in range(3)]
    keeper.queue.broken = True
    keeper.relay()
    assert keeper.queue.sent == []
    keeper.queue.broken = False
    deadline = time.monotonic() + 10
    while len(keeper.queue.sent) < 3 and time.monotonic() < deadline:
        keeper.relay()
        time.sleep(0.1)
    assert sorted(keeper.queue.sent) == sorted(jobs)
    keeper.relay()
    assert len(keeper.queue.sent) == 3, "a sent message is not sent again"


def test_a_forgotten_job_is_rung_again(database, keeper):
    job = add(database)
    keeper.relay()
    assert notify_forgotten_jobs(database, 60) == 0, "announced a moment ago"
    assert notify_forgotten_jobs(database, -1) == 1
    assert notify_forgotten_jobs(database, -1) == 0, "one open message is enough"
    keeper.relay()
    assert keeper.queue.sent == [job, job]


def test_a_job_given_back_is_rung_without_waiting(database, keeper):
    job = add(database)
    keeper.relay()
    Attempt(database, claim(database, job, "w", 60)).give_back("runner_crashed")
    keeper.sweep()
    keeper.relay()
    assert keeper.queue.sent == [job, job]


def test_an_accepted_job_and_its_message_commit_together(database):
    with pytest.raises(RuntimeError), database.write() as session:
        JobRepository(session, "t").add(NEW, now(session))
        raise RuntimeError
    with database.read() as session:
        assert session.scalars(select(Job)).all() == []
        assert session.scalars(select(OutboxMessage)).all() == []


@pytest.mark.parametrize(
    "change",
    [
        "status='paused'",
        "status='succeeded'",
        "status='running'",
        "attempt=3",
        "attempt=-1",
        "status='failed', finished_at=created_at",
        "lease_expires_at=created_at",
    ],
)
def test_the_database_refuses_impossible_jobs(database, change):
    job = add(database)
    with pytest.raises(IntegrityError), database.write() as session:
        session.execute(text(f"UPDATE jobs SET {change} WHERE id = :id"), {"id": job})


@pytest.mark.parametrize("target", sorted(set(JobStatus) - {JobStatus.FAILED}))
def test_the_database_itself_lets_no_job_out_of_its_end(database, target):
    """Whatever code asks for it; a change of anything else is fine."""
    job = add(database)
    Attempt(database, claim(database, job, "w", 60)).fail(
        {"code": "x", "message": "", "retryable": False}
    )
    lease = now_and_then(database) if target in OWNED else None
    ended = None if target not in TERMINAL else Job.finished_at
    with pytest.raises(IntegrityError), database.write() as session:
        changes = {"status": target, "finished_at": ended, "lease_expires_at": lease}
        session.execute(update(Job).where(Job.id == job).values(changes))
    with database.write() as session:
        session.execute(update(Job).where(Job.id == job).values(version=Job.version + 1))
    assert load(database, job).status == JobStatus.FAILED


def now_and_then(database):
    with database.read() as session:
        return now(session) + timedelta(minutes=1)


def test_only_the_oldest_waiting_jobs_are_rung_again(database, monkeypatch):
    """Or a long queue would fill the broker with messages nobody needs."""
    monkeypatch.setattr("app.db.recovery.MOST_NOTIFIED_AGAIN", 2)
    jobs = [add(database) for _ in range(4)]
    with database.write() as session:
        session.execute(delete(OutboxMessage))
    assert notify_forgotten_jobs(database, -1) == 2
    with database.read() as session:
        sent = session.scalars(select(OutboxMessage.job_id).order_by(OutboxMessage.id)).all()
    assert sent == jobs[:2]
    claim(database, jobs[0], "w", 60)
    assert notify_forgotten_jobs(database, -1) == 1, "the next one, when the first has been taken"


def test_a_broker_that_hangs_keeps_nobody_from_submitting(database, keeper):
    first = add(database)
    during = []
    keeper.queue.notify = lambda job_id: during.append((job_id, add(database)))
    keeper.relay()
    assert during[0][0] == first


def test_a_relay_that_dies_between_taking_and_sending_loses_no_message(
    database, keeper, monkeypatch
):
    job = add(database)
    with database.write() as session:
        assert len(take_due_messages(session)) == 1
    keeper.relay()
    assert keeper.queue.sent == [], "somebody is sending it"
    with database.write() as session:
        session.execute(update(OutboxMessage).values(not_before=now(session)))
    keeper.relay()
    assert keeper.queue.sent == [job]


@pytest.mark.parametrize("committing", [False, True])
def test_a_job_given_back_ends_when_its_time_is_up(database, committing):
    """Though no worker is there that would notice."""
    with database.write() as session:
        new = replace(NEW, max_runtime_seconds=60)
        job = JobRepository(session, "t").add(new, now(session)).id
    Attempt(database, claim(database, job, "w", 60)).give_back("hub_unavailable")
    assert fail_overdue_jobs(database) == 0
    with database.write() as session:
        earlier = now(session) - timedelta(seconds=61)
        session.execute(
            update(Job).where(Job.id == job).values(started_at=earlier, committing=committing)
        )
    assert fail_overdue_jobs(database) == (0 if committing else 1)
    if not committing:
        assert load(database, job).error["code"] == "deadline_exceeded"
