import time

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import inspect, text
from sqlalchemy.exc import OperationalError

from app.db import sweep_models  # noqa: F401 - tables
from app.db.base import Base
from app.db.job_lists import JobFilter, job_page
from app.db.migrate import alembic_config, at_head
from app.db.session import connect
from app.domain.job_status import OWNED, TERMINAL
from app.jobs.views import job_view
from tests.servers import fresh_database


@pytest.fixture(params=["postgres", "sqlite"])
def empty_url(request, tmp_path):
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'empty.db'}"
        return
    with fresh_database(request.getfixturevalue("postgres_server")) as url:
        yield url


def test_up_down_up_and_no_difference_to_the_models(empty_url):
    config = alembic_config(empty_url)
    database = connect(empty_url)
    assert not at_head(database)
    command.upgrade(config, "head")
    command.downgrade(config, "base")
    command.upgrade(config, "head")
    assert at_head(database)
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []
    database.dispose()


STATUSES = ("queued", "running", "canceling", "succeeded", "failed", "canceled")
TABLES = ("api_keys", "jobs", "job_events", "job_log_lines", "job_metrics", "layer_reports", "artifact_files", "outbox")  # fmt: skip


def fill(database):
    """Rows of the first schema, one job for each status, with everything that belongs to a job."""
    at = (
        "2026-01-02 03:04:05+00:00"
        if database.engine.dialect.name != "sqlite"
        else "2026-01-02 03:04:05"
    )
    with database.engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO api_keys (id, tenant, name, key_sha256, scopes, created_at)"
                " VALUES ('key_1', 't', 'n', 'd', '[\"jobs:read\"]', :at)"
            ),
            {"at": at},
        )
        for number, status in enumerate(STATUSES):
            values = {
                "id": f"job_{number:032x}", "status": status, "at": at,
                "ended": at if status in TERMINAL else None,
                "lease": at if status in OWNED else None,
                "error": '{"code": "x", "message": "y"}' if status == "failed" else None,
            }  # fmt: skip
            connection.execute(
                text(
                    "INSERT INTO jobs (id, tenant, status, version, last_event, attempt, max_attempts, request,"
                    " recipe, recipe_sha256, model_name, error, committing, lease_expires_at, created_at,"
                    " finished_at) VALUES (:id, 't', :status, 3, 1, 1, 3, '{\"labels\": {\"a\": \"b\"}}', '{}',"
                    " 'd', 'm', :error, false, :lease, :at, :ended)"
                ),
                values,
            )
            for insert in (
                "INSERT INTO job_events VALUES (:id, 1, :at, 0, 'status', '{\"status\": \"queued\"}')",
                "INSERT INTO job_log_lines (job_id, attempt, at, text) VALUES (:id, 1, :at, 'line')",
                "INSERT INTO job_metrics VALUES (:id, 'result', 'kl', 'wikitext2', 0.25)",
                "INSERT INTO layer_reports VALUES (:id, 1, 'layer', 'svd', true, '', '{}')",
                "INSERT INTO artifact_files VALUES (:id, 'config.json', 12345678901, 'd')",
                "INSERT INTO outbox (job_id, created_at, not_before, tries) VALUES (:id, :at, :at, 2)",
            ):
                connection.execute(text(insert), values)


def contents(database, columns):
    """All rows of the first schema's tables, in the first schema's columns."""
    with database.engine.connect() as connection:
        return {
            table: sorted(
                map(
                    str,
                    connection.execute(text(f"SELECT {', '.join(columns[table])} FROM {table}")),
                )
            )
            for table in TABLES
        }


def test_a_filled_database_of_the_first_version_goes_up_and_down_without_loss(empty_url):
    config = alembic_config(empty_url)
    command.upgrade(config, "0001")
    database = connect(empty_url)
    columns = {
        table: [column["name"] for column in inspect(database.engine).get_columns(table)]
        for table in TABLES
    }
    fill(database)
    before = contents(database, columns)
    assert len(before["jobs"]) == len(STATUSES)
    command.upgrade(config, "head")
    assert contents(database, columns) == before
    with database.read() as session:
        jobs = job_page(session, "t", JobFilter(labels={"a": "b"}), limit=50)
    assert {job.status for job in jobs} == set(STATUSES)
    assert all(job_view(job).labels == {"a": "b"} for job in jobs), "old jobs are shown"
    command.downgrade(config, "0001")
    assert contents(database, columns) == before
    command.upgrade(config, "head")
    assert contents(database, columns) == before
    database.dispose()


def revisions():
    """Every revision with the one it comes after, the oldest first."""
    found = [(one.down_revision, one.revision) for one in SCRIPTS.walk_revisions()]
    return [(before, after) for before, after in reversed(found) if before is not None]


SCRIPTS = ScriptDirectory.from_config(alembic_config("sqlite://"))
PATIENT = {("0002", "0003"), ("0006", "0007")}
"""Make indexes beside a live table: they may wait, as nobody waits for them."""
OF_NEW_TABLES = {("0009", "0010"), ("0010", "0011")}
"""They need no lock that readers stand in the way of."""


def impatient(url):
    """Migrations that wait for half a second where they usually wait for five."""
    config = alembic_config(url)
    config.attributes["lock_timeout_ms"] = 500
    return config


@pytest.mark.parametrize("step", sorted(set(revisions()) - PATIENT))
def test_a_migration_gives_up_rather_than_wait_for_a_busy_table(postgres_server, step):
    before, after = step
    with fresh_database(postgres_server) as url:
        config = impatient(url)
        command.upgrade(config, before)
        database = connect(url)
        with database.engine.connect() as busy, busy.begin():
            tables = ", ".join(sorted({*inspect(busy).get_table_names()} - {"alembic_version"}))
            busy.execute(text(f"LOCK TABLE {tables} IN ACCESS SHARE MODE"))
            begun = time.monotonic()
            if step in OF_NEW_TABLES:
                command.upgrade(config, after)
            else:
                with pytest.raises(OperationalError, match="lock timeout"):
                    command.upgrade(config, after)
            assert time.monotonic() - begun < 60
        command.upgrade(config, "head")
        assert at_head(database)
        database.dispose()


def test_after_the_patient_migration_none_is(postgres_server):
    """All in one go: what one migration sets must not stay for the next."""
    with fresh_database(postgres_server) as url:
        config = impatient(url)
        command.upgrade(config, "0002")
        database = connect(url)
        with database.engine.connect() as busy, busy.begin():
            busy.execute(text("LOCK TABLE rate_windows IN ACCESS SHARE MODE"))
            with pytest.raises(OperationalError, match="lock timeout"):
                command.upgrade(config, "head")
        database.dispose()


def test_processes_of_the_version_before_stay_ready(empty_url):
    """Migrations run first: a load balancer must not lose every API at that moment."""
    database = connect(empty_url)
    command.upgrade(alembic_config(empty_url), "0003")
    assert not at_head(database), "older than this code"
    command.upgrade(alembic_config(empty_url), "head")
    with database.engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    assert at_head(database)
    database.dispose()
