"""What a run leaves of a source's figures: kept for its source, as far as it is what it should be, and known to workers elsewhere."""

import os
from datetime import timedelta

import pytest
from sqlalchemy import update

from app.db.models import KnownFigure
from app.db.retention import Retention
from app.db.session import connect, now
from app.ops.housekeeper import Housekeeper
from worker.storage.figures import LARGEST_SHARED, MOST_SHARED, bring, share, take_in

DIGEST, OTHER = "a" * 64, "b" * 64
SCORES = f"scores-{'1' * 64}.json"
STATES = f"{'2' * 64}.states"
PLENTY = 1 << 30


@pytest.fixture
def machine(tmp_path):
    """Make a folder of figures of one source, on a disk of its own."""
    made = []

    def machine(files=(), source="c" * 64):
        folder = tmp_path / f"machine{len(made)}" / source
        folder.mkdir(parents=True)
        made.append(folder)
        write(folder, dict(files))
        return folder

    return machine


def write(folder, files):
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def files(folder):
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}


def test_only_what_figures_are_called_is_taken_in(machine, tmp_path):
    left, folder = tmp_path / "left", machine()
    write(
        left,
        {
            f"{DIGEST}/{SCORES}": "{}", f"{DIGEST}/{STATES}": "s", f"{DIGEST}/evil.py": "",
            f"{DIGEST}/deep/{SCORES}": "{}", f"not-a-digest/{SCORES}": "{}", "stray.json": "{}",
        },
    )  # fmt: skip
    secret = tmp_path / "secret"
    secret.write_text("not for others")
    (left / DIGEST / f"answers-{'3' * 64}.json").symlink_to(secret)
    (left / OTHER).symlink_to(left / DIGEST)
    take_in(left, folder, PLENTY)
    assert files(folder) == {f"{DIGEST}/{SCORES}", f"{DIGEST}/{STATES}"}
    assert not left.exists()


def test_the_oldest_go_first(machine, tmp_path):
    folder = machine({f"{DIGEST}/{STATES}": "x" * 100})
    os.utime(folder / DIGEST / STATES, (1, 1))
    left = tmp_path / "left"
    write(left, {f"{OTHER}/{SCORES}": "y" * 100})
    take_in(left, folder, 150)
    assert files(folder) == {f"{OTHER}/{SCORES}"}


def test_workers_elsewhere_know_what_was_measured_here(machine, database):
    here = machine({f"{DIGEST}/{SCORES}": '{"kl": 0.1}', f"{DIGEST}/{STATES}": "large"})
    there, of_another_source = machine(), machine(source="d" * 64)
    share(database, here)
    share(database, here)
    for folder in (there, of_another_source):
        bring(database, folder)
    assert files(there) == {f"{DIGEST}/{SCORES}"}, "states stay where they are"
    assert (there / DIGEST / SCORES).read_text() == '{"kl": 0.1}'
    assert files(of_another_source) == set()


def test_what_is_here_is_not_replaced(machine, database):
    share(database, machine({f"{DIGEST}/{SCORES}": "1"}))
    mine = machine({f"{DIGEST}/{SCORES}": "2"})
    bring(database, mine)
    share(database, mine)
    assert (mine / DIGEST / SCORES).read_text() == "2"
    bring(database, third := machine())
    assert (third / DIGEST / SCORES).read_text() == "1", "the first stays known"


def test_a_run_cannot_fill_the_database(machine, database):
    large = {f"{DIGEST}/answers-{'4' * 64}.json": "x" * (LARGEST_SHARED + 1)}
    broken = {f"{DIGEST}/answers-{'5' * 64}.json": "\0"}
    many = {f"{DIGEST}/scores-{at:064}.json": "{}" for at in range(MOST_SHARED + 10)}
    share(database, machine(large | broken | many))
    bring(database, there := machine())
    assert MOST_SHARED - 2 <= len(files(there)) <= MOST_SHARED
    assert not any("answers" in name for name in files(there))


def test_a_database_that_is_away_costs_no_job(machine):
    away = connect("postgresql+psycopg://nobody@127.0.0.1:9/none")
    folder = machine({f"{DIGEST}/{SCORES}": "{}"})
    bring(away, folder)
    share(away, folder)
    assert files(folder) == {f"{DIGEST}/{SCORES}"}


def test_figures_are_forgotten_with_jobs_of_their_age(machine, database):
    share(database, machine({f"{DIGEST}/{SCORES}": "{}"}))
    keep = Housekeeper(database, None, 1, 1, 1, None, retention=Retention(job_days=30))
    keep.expire()
    bring(database, before := machine())
    assert files(before) == {f"{DIGEST}/{SCORES}"}
    with database.write() as session:
        ago = now(session) - timedelta(days=31)
        session.execute(update(KnownFigure).values(created_at=ago))
    keep.expire()
    bring(database, after := machine())
    assert files(after) == set()
