"""What can go wrong, and a seeded order of it. Each fault undoes itself."""

import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress

import psutil
from sqlalchemy import select

from app.db.models import Job
from app.domain.job_status import TERMINAL
from app.queue import CeleryQueue, celery_app
from tests.faults.stack import LEASE_SECONDS, Deployment

Fault = Callable[[Deployment, random.Random], bool | None]
"""False if there was nothing it could happen to."""


def kill_a_child(stack: Deployment, chance: random.Random) -> bool:
    return bool(_signal_one(stack.children(), chance, signal.SIGKILL))


def freeze_a_runner_past_its_lease(stack: Deployment, chance: random.Random) -> bool:
    frozen = _signal_one(stack.children("worker.children.runner"), chance, signal.SIGSTOP)
    _thaw_later(frozen)
    return bool(frozen)


def kill_a_supervisor(stack: Deployment, chance: random.Random) -> bool:
    parent = psutil.Process(stack.processes[chance.choice(stack.workers)].pid)
    with suppress(psutil.NoSuchProcess):
        return bool(_signal_one(parent.children(), chance, signal.SIGKILL))
    return False


def freeze_a_whole_worker_past_its_lease(stack: Deployment, chance: random.Random) -> None:
    name = chance.choice(stack.workers)
    group = [psutil.Process(stack.processes[name].pid)]
    with suppress(psutil.NoSuchProcess):
        group += group[0].children(recursive=True)
    for process in group:
        with suppress(psutil.NoSuchProcess):
            process.suspend()
    _thaw_later(group)


def kill_a_worker(stack: Deployment, chance: random.Random) -> None:
    name = chance.choice(stack.workers)
    stack.kill(name)
    stack.start(name)


def stop_a_worker(stack: Deployment, chance: random.Random) -> None:
    name = chance.choice(stack.workers)
    stack.processes[name].terminate()
    with suppress(Exception):
        stack.processes[name].wait(100)
    stack.kill(name)
    stack.start(name)


def kill_an_api(stack: Deployment, chance: random.Random) -> None:
    name = chance.choice(stack.apis)
    stack.kill(name)
    stack.start(name)


def freeze_an_api(stack: Deployment, chance: random.Random) -> None:
    name = chance.choice(stack.apis)
    stack.signal_group(name, signal.SIGSTOP)
    time.sleep(2)
    stack.signal_group(name, signal.SIGCONT)


def restart_the_broker(stack: Deployment, _: random.Random) -> None:
    stack.valkey.kill()
    time.sleep(1)
    stack.valkey.start()


def lose_the_brokers_data(stack: Deployment, _: random.Random) -> None:
    stack.valkey.kill()
    stack.valkey.start(empty=True)


def flush_the_broker(stack: Deployment, _: random.Random) -> None:
    with stack.valkey.client() as client:
        client.flushall()


def freeze_the_broker(stack: Deployment, _: random.Random) -> None:
    stack.valkey.process.send_signal(signal.SIGSTOP)
    time.sleep(3)
    stack.valkey.process.send_signal(signal.SIGCONT)


def restart_the_database(stack: Deployment, _: random.Random) -> None:
    stack.postgres.stop()
    time.sleep(0.5)
    stack.postgres.start()


def freeze_the_database(stack: Deployment, _: random.Random) -> None:
    stack.postgres.signal_all(signal.SIGSTOP)
    time.sleep(3)
    stack.postgres.signal_all(signal.SIGCONT)


def ring_every_job_twenty_times(stack: Deployment, chance: random.Random) -> None:
    with stack.database.read() as session:
        jobs = list(session.scalars(select(Job.id).where(Job.status.not_in(TERMINAL)))) * 20
    chance.shuffle(jobs)
    queue = CeleryQueue(celery_app(stack.valkey.url, 3600))
    for job_id in jobs:
        queue.notify(job_id)


def let_the_hub_stumble(stack: Deployment, chance: random.Random) -> None:
    fragment = chance.choice(["/resolve/", "/commit/", "/preupload/", "/api/models", "/lfs"])
    stack.hub.fail_next(fragment, chance.choice([429, 500, 503]), times=chance.randint(1, 2))


def lose_the_answer_to_a_commit(stack: Deployment, _: random.Random) -> None:
    stack.hub.lost_answers.append("/commit/")


def cancel_a_job(stack: Deployment, chance: random.Random) -> bool:
    with stack.database.read() as session:
        jobs = sorted(session.scalars(select(Job.id).where(Job.status.not_in(TERMINAL))))
    if jobs:
        stack.ask("POST", f"/jobs/{chance.choice(jobs)}/cancel", seconds=20)
    return bool(jobs)


def fill_the_disk(stack: Deployment, _: random.Random) -> bool:
    """For some seconds; not where there is no file system of its own for it."""
    if not stack.disk.is_mount():
        return False
    filler = stack.disk / "filler"
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1 << 24))
    time.sleep(4)
    filler.unlink()
    return True


FAULTS: tuple[Fault, ...] = (
    kill_a_child, freeze_a_runner_past_its_lease, kill_a_supervisor, freeze_a_whole_worker_past_its_lease,
    kill_a_worker, stop_a_worker, kill_an_api, freeze_an_api, restart_the_broker, lose_the_brokers_data,
    flush_the_broker, freeze_the_broker, restart_the_database, freeze_the_database,
    ring_every_job_twenty_times, let_the_hub_stumble, lose_the_answer_to_a_commit, cancel_a_job,
    fill_the_disk,
)  # fmt: skip


def run_schedule(stack: Deployment, seed: int, count: int, pause: float) -> list[str]:
    """Let `count` faults happen, each within `pause` seconds of the one before; return their names."""
    chance = random.Random(seed)
    happened = []
    for fault in chance.sample(FAULTS * (count // len(FAULTS) + 1), count):
        time.sleep(chance.uniform(0, pause))
        happened.append(fault.__name__)
        try:
            if fault(stack, chance) is False:
                happened[-1] += " (to nobody)"
        except AssertionError as error:  # no API answered in time: the next fault may help
            happened[-1] += f" ({error})"
    return happened


def _signal_one(
    processes: list[psutil.Process], chance: random.Random, number: int
) -> list[psutil.Process]:
    if not processes:
        return []
    chosen = chance.choice(sorted(processes, key=lambda process: process.pid))
    with suppress(psutil.NoSuchProcess):
        chosen.send_signal(number)
    return [chosen]


def _thaw_later(frozen: list[psutil.Process]) -> None:
    time.sleep(2 * LEASE_SECONDS)
    for process in frozen:
        with suppress(psutil.NoSuchProcess):
            process.resume()
