"""`spq keys` and `spq tenants` beside a service of one's own."""

import json

import pytest
from click.testing import CliRunner

from app.cli import keys_group, tenants_group
from app.db.migrate import upgrade


@pytest.fixture
def spq(tmp_path, monkeypatch):
    """Run a command as somebody whose home holds what `spq serve` left there."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SPQ_DATABASE_URL", raising=False)
    groups = {"keys": keys_group, "tenants": tenants_group}

    def run(group, *arguments):
        return CliRunner().invoke(groups[group], arguments)

    return run


@pytest.fixture
def own_service(tmp_path):
    (tmp_path / ".spq").mkdir()
    upgrade(f"sqlite:///{tmp_path / '.spq' / 'spq.db'}")


def test_without_a_database_the_way_to_one_is_named(spq):
    refused = spq("keys", "list")
    assert refused.exit_code == 2
    assert "SPQ_DATABASE_URL" in refused.output
    assert "spq.db does not exist" in refused.output


@pytest.mark.usefixtures("own_service")
def test_keys_that_end_are_told_from_those_that_live(spq):
    made = json.loads(spq("keys", "create", "--tenant", "team", "--name", "ci", "--json").output)
    assert spq("keys", "rotate", made["id"], "--hours", "0").exit_code == 0
    lines = [line.split() for line in spq("keys", "list").output.splitlines()]
    assert sorted(line[3] for line in lines) == ["expired", "live"]
    rows = {row["id"]: row for row in json.loads(spq("keys", "list", "--json").output)}
    assert not rows[made["id"]]["live"]
    assert rows[made["id"]]["state"] == "expired"


@pytest.mark.usefixtures("own_service")
def test_a_tenant_nobody_has_is_noted_and_listed(spq):
    spq("keys", "create", "--tenant", "team")
    assert (
        "no key of a tenant 'tema' yet"
        in spq("tenants", "limit", "tema", "--active-jobs", "1").output
    )
    assert "no key" not in spq("tenants", "limit", "team", "--jobs-per-day", "7").output
    shown = spq("tenants", "list").output.splitlines()
    assert [line.split(maxsplit=1) for line in shown] == [
        ["team", "max_jobs_per_day 7"], ["tema", "max_active_jobs 1"],
    ]  # fmt: skip
