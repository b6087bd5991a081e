"""What must hold after any schedule, read from the database, the Hub's commits and the process table."""

import hashlib
import re
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from sqlalchemy import select

from app.db.models import ArtifactFile, Job, JobEvent, WebhookDelivery
from app.domain.job_status import TERMINAL, JobStatus
from tests.faults.stack import Deployment
from tests.hub_server import WRITE_TOKEN
from worker.storage.figures import FOLDER

TRAILER = re.compile(r"Spq-Job-Id: (job_[0-9a-f]{32})")


def wait_for_the_end(stack: Deployment, seconds: float) -> float:
    """Wait until every job has ended and every message is settled; return how long that took."""
    begun = time.monotonic()
    while time.monotonic() - begun < seconds:
        with stack.database.read() as session:
            jobs = session.scalars(select(Job.status)).all()
            waiting = session.scalars(
                select(WebhookDelivery.id).where(
                    WebhookDelivery.next_try_at.is_not(None), WebhookDelivery.tries < 1
                )
            ).all()
        clean = not stack.children() and not any(_left(stack))
        if set(jobs) <= set(TERMINAL) and not waiting and clean:
            break
        time.sleep(0.5)
    return time.monotonic() - begun


def violations(stack: Deployment, submitted: dict[str, str]) -> list[str]:
    """Every broken invariant, in words.

    Args:
        submitted: Idempotency-Key → job id, as the API answered.
    """
    return [
        *_of_jobs(stack, submitted), *_of_messages(stack), *_of_events(stack), *_of_the_hub(stack),
        *_of_leftovers(stack), *_of_artifacts(stack), *_of_the_store(stack),
    ]  # fmt: skip


def _of_jobs(stack: Deployment, submitted: dict[str, str]) -> Iterator[str]:
    with stack.database.read() as session:
        jobs = {job.id: job for job in session.scalars(select(Job))}
    if set(jobs) != set(submitted.values()):
        yield f"I8: {len(submitted)} keys, {len(set(submitted.values()))} answers, {len(jobs)} jobs"
    for job in jobs.values():
        if job.status not in TERMINAL:
            yield f"I1: {job.id} is {job.status} ({job.stage}, attempt {job.attempt})"
        elif job.lease_expires_at is not None:
            yield f"I7: {job.id} has ended and is leased"


def _of_artifacts(stack: Deployment) -> Iterator[str]:
    with stack.database.read() as session:
        jobs = list(session.scalars(select(Job)))
        files = list(session.scalars(select(ArtifactFile)))
    for job in jobs:
        if job.status == JobStatus.SUCCEEDED and job.id not in {file.job_id for file in files}:
            yield f"artifact: {job.id} succeeded without files"
        if job.error and job.error["code"] in ("internal", "deadline_exceeded_before_start"):
            yield f"error: {job.id} ended with {job.error}"
    if jobs and all(job.status == JobStatus.FAILED for job in jobs):
        yield "every job failed"


def _of_the_store(stack: Deployment) -> Iterator[str]:
    with stack.database.read() as session:
        files = list(session.scalars(select(ArtifactFile)))
    for file in files:
        stored = stack.artifacts / file.job_id / file.path
        found = hashlib.sha256(stored.read_bytes()).hexdigest() if stored.is_file() else "nothing"
        if found != file.sha256:
            yield f"artifact: {file.job_id}/{file.path} is not what was recorded"
    owners = {file.job_id for file in files}
    for folder in stack.artifacts.glob("job_*"):
        if folder.name not in owners:
            yield f"I7: artifact {folder.name} is stored and nobody's"


def _of_messages(stack: Deployment) -> Iterator[str]:
    with stack.database.read() as session:
        jobs = list(session.scalars(select(Job.id).where(Job.status.in_(TERMINAL))))
        messages = list(session.scalars(select(WebhookDelivery)))
    for job_id in jobs:
        count = sum(message.job_id == job_id for message in messages)
        if count != 1:
            yield f"I9: {job_id} ended with {count} messages"
    for message in messages:
        if message.delivered_at is None and message.tries < 1:
            yield f"I9: nobody tried to deliver {message.id}"


def _of_events(stack: Deployment) -> Iterator[str]:
    with stack.database.read() as session:
        rows = list(session.scalars(select(JobEvent).order_by(JobEvent.job_id, JobEvent.seq)))
    by_job = defaultdict(list)
    for row in rows:
        by_job[row.job_id].append(row)
    for job_id, events in by_job.items():
        if [event.seq for event in events] != list(range(1, len(events) + 1)):
            yield f"I6: {job_id} has gaps in its events"
        attempts = [event.attempt for event in events]
        if attempts != sorted(attempts):
            yield f"I2: {job_id}: an attempt wrote after a later one began: {attempts}"
        ends = [
            place for place, event in enumerate(events)
            if event.type == "status" and event.data["status"] in TERMINAL
        ]  # fmt: skip
        if len(ends) > 1 or (ends and ends[0] != len(events) - 1):
            yield f"I3: {job_id} changed after its end"


def _of_the_hub(stack: Deployment) -> Iterator[str]:
    commits: dict[str, int] = defaultdict(int)
    for repo in stack.hub.models.values():
        for commit in repo.commits:
            for job_id in TRAILER.findall(commit.description):
                commits[job_id] += 1
    with stack.database.read() as session:
        jobs = list(session.scalars(select(Job)))
    for job in jobs:
        wanted = {JobStatus.SUCCEEDED: (1,), JobStatus.CANCELED: (0,)}.get(
            JobStatus(job.status), (0, 1)
        )
        if commits[job.id] not in wanted:
            number = "I5" if job.status == JobStatus.CANCELED else "I4"
            yield f"{number}: {job.id} {job.status} with {commits[job.id]} commits"


def _left(stack: Deployment) -> Iterator[Path]:
    """What attempts leave; figures stay for later jobs."""
    for folder in (stack.scratch, stack.artifacts / ".work"):
        for left in folder.iterdir() if folder.is_dir() else ():
            if left != stack.scratch / FOLDER:
                yield left


def _of_leftovers(stack: Deployment) -> Iterator[str]:
    for child in stack.children():
        yield f"I7: process {child.pid} is left: {child.cmdline()[-1]}"
    for left in _left(stack):
        yield f"I7: {left.parent.name}/{left.name} is left"
    for log in stack.root.glob("*.log"):
        text = log.read_text(errors="replace")
        if WRITE_TOKEN in text:
            yield f"I10: the token stands in {log.name}"
        if "Traceback" in text and "attempt_bug" in text:
            yield f"bug in {log.name}"
