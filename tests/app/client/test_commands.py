"""Commands that talk to a service, before a real one."""

import json
import sys
import time

import pytest

from app.client.http import Client as ServiceClient
from app.client.tables import duration, in_bytes, table
from app.db.session import connect
from tests.dashboard.seed import add, result, seed, take
from tests.served import Site, served
from tests.servers import free_port, fresh_database
from worker.cli import main


@pytest.fixture(scope="module")
def site(postgres_server, tmp_path_factory, tiny_llama):
    folder = tmp_path_factory.mktemp("client")
    with fresh_database(postgres_server, "spq_template") as database_url:
        database = connect(database_url)
        with served(database_url, folder, tiny_llama.parent) as url:
            yield Site(url, database, seed(database))
        database.dispose()


@pytest.fixture
def spq(site, monkeypatch, capsys):
    """Run a command as a user of the service; return its exit code, what it printed, and what it said."""
    monkeypatch.setenv("SPQ_URL", site.url)
    monkeypatch.setenv("SPQ_API_KEY", site.key())

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["spq", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        told = capsys.readouterr()
        assert "Traceback" not in told.err
        return ended.value.code or 0, told.out, told.err

    return run


def test_the_list_is_a_table_for_people_ids_for_pipes_and_json_for_programs(spq, site):
    code, out, _ = spq("jobs", "list")
    assert code == 0
    lines = out.splitlines()
    assert lines[0].split()[:4] == ["job", "status", "age", "model"]
    gate = next(line for line in lines if "spq-paper" in line)
    assert "0.5100" in gate
    assert "quality_gate_failed" in gate
    assert any("attempt 1 of 3 ended: hub_unavailable" in line for line in lines)
    assert "running 40%" in out
    assert "bob/secret" not in out
    _, out, _ = spq("jobs", "list", "-q", "--status", "failed", "--status", "canceled")
    assert set(out.split()) >= {site.jobs["gate"], site.jobs["failed"], site.jobs["canceled"]}
    _, out, _ = spq("jobs", "list", "--label", "team=search", "--json")
    assert [one["id"] for one in json.loads(out)["data"]] == [site.jobs["succeeded"]]
    _, out, _ = spq("jobs", "list", "--all", "--limit", "2", "-q")
    assert len(out.split()) >= 9
    code, out, err = spq("jobs", "list", "--search", "nothing like this")
    assert (code, out, err) == (0, "", "no jobs\n")


def test_a_job_is_shown_with_figures_gates_verdict_and_stages(spq, site):
    code, out, _ = spq("jobs", "show", site.jobs["gate"])
    assert code == 0
    assert "quality_gate_failed: KL from the source" in out
    assert "0.5100 ± 0.0170" in out
    assert "gate: kl at most 0.05 on wikitext2: BROKEN (0.51)" in out
    _, out, _ = spq("jobs", "show", site.jobs["better"][-7:])
    assert "better than plain INT8. 46.5% of the source's bytes" in out
    assert all(len(line) < 200 for line in out.splitlines())
    _, out, _ = spq("jobs", "show", site.jobs["running"])
    assert "◐ compress (quantize)" in out


def test_jobs_are_named_by_what_tells_them_apart(spq, site):
    newest = add(site.database, model="org/newest")
    _, out, _ = spq("jobs", "show", "@last", "--json")
    assert json.loads(out)["id"] == newest
    for given, words in (
        ("zzzz", "no job has 'zzzz'"),
        ("ab", "too short"),
        ("job_", "several jobs have"),
        ("job_" + "0" * 32, "no job"),
    ):
        code, _, err = spq("jobs", "show", given)
        assert code == 5
        assert words in err


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ({"SPQ_API_KEY": "spq_wrong"}, 4, "does not know the key of SPQ_API_KEY"),
        ({"SPQ_URL": "http://127.0.0.1:9"}, 6, "does not answer"),
        ({"SPQ_URL": "notaurl"}, 2, "begins with http://"),
    ],
)
def test_exit_codes_tell_a_wrong_key_from_an_absent_service(spq, monkeypatch, change, code, words):
    for name, value in change.items():
        monkeypatch.setenv(name, value)
    found, out, err = spq("jobs", "list")
    assert (found, out) == (code, "")
    assert words in err
    assert len(err.splitlines()) == 1
    _, _, err = spq("jobs", "list", "--json")
    assert words in json.loads(err)["error"]["message"]


def test_waiting_ends_with_the_worst_of_the_jobs(spq, site):
    good, bad, stopped = site.jobs["better"], site.jobs["failed"], site.jobs["canceled"]
    assert spq("wait", good)[0] == 0
    assert spq("jobs", "wait", good, stopped)[0] == 3
    code, out, _ = spq("jobs", "wait", good, stopped, bad)
    assert code == 1
    assert "model_not_found" in out
    code, _, err = spq("wait", site.jobs["running"], "--timeout", "1")
    assert code == 124
    assert "go on" in err
    assert spq("wait")[0] == 2


def test_waiting_for_a_label_counts_jobs_that_have_ended(spq, site):
    for name in ("gate", "better"):
        assert spq("jobs", "label", site.jobs[name], f"waited=for-{name}")[0] == 0
    assert spq("wait", "--label", "waited=for-better")[0] == 0
    code, out, _ = spq("wait", "--label", "waited=for-gate")
    assert code == 1
    assert "quality_gate_failed" in out
    code, _, err = spq("wait", "--label", "waited=for-nobody")
    assert code == 5
    assert "no job has the label waited=for-nobody" in err


def test_a_timeout_holds_while_the_service_is_away():
    client = ServiceClient(f"http://127.0.0.1:{free_port()}", "spq_x")
    began = time.monotonic()
    assert client.wait(["job_1"], 1.0) == []
    assert time.monotonic() - began < 30


@pytest.mark.parametrize("arguments", [("download", "@last"), ("show", "@last"), ("list",)])
def test_an_interrupted_command_ends_as_shells_expect(spq, monkeypatch, arguments):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(ServiceClient, "call", interrupted)
    code, _, err = spq("jobs", *arguments)
    assert (code, err) == (130, "interrupted\n")


def test_watching_ends_with_how_the_job_ended(spq, site):
    code, out, _ = spq("jobs", "watch", site.jobs["gate"])
    assert code == 1
    assert "BROKEN" in out
    code, out, _ = spq("jobs", "watch", site.jobs["better"])
    assert code == 0
    assert f"spq jobs download {site.jobs['better']}" in out


def test_an_interrupted_watch_says_that_the_job_goes_on(spq, site, monkeypatch):
    def interrupted(*_arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("app.client.ending.follow", interrupted)
    code, _, err = spq("jobs", "watch", site.jobs["running"])
    assert code == 130
    assert f"spq jobs cancel {site.jobs['running']}" in err


def test_logs_events_figures_and_layers_are_printed(spq, site):
    job = site.jobs["succeeded"]
    _, out, _ = spq("jobs", "logs", job, "--tail", "1")
    assert [line.split("] ")[1] for line in out.splitlines()] == ["a line"]
    code, out, _ = spq("jobs", "logs", job, "--follow")
    assert (code, len(out.splitlines())) == (0, 2)
    _, out, _ = spq("jobs", "events", site.jobs["again"], "--problems")
    assert "hub_unavailable" in out
    _, out, _ = spq("jobs", "layers", job)
    assert "model.layers.3.mlp.up_proj" in out
    assert spq("jobs", "metrics", job)[0] == 0


def test_a_followed_log_goes_on_until_the_job_has_ended(spq, site, monkeypatch):
    job = add(site.database, model="org/followed")
    attempt = take(site.database, job)
    attempt.log(["first"])

    def then(_seconds):
        attempt.log(["second"])
        attempt.fail({"code": "internal", "message": "no"})

    monkeypatch.setattr("app.client.http.time.sleep", then)
    _, out, _ = spq("jobs", "logs", job, "-f")
    assert [line.split("] ")[1] for line in out.splitlines()] == ["first", "second"]


def test_jobs_are_compared_and_told_when_they_cannot_be(spq, site):
    code, out, err = spq("jobs", "compare", site.jobs["better"], site.jobs["gate"])
    assert (code, err) == (0, "")
    assert [line.split()[0] for line in out.splitlines()[1:5]] == [
        "source",
        "int8",
        "balanced",
        "spq-paper",
    ]
    assert spq("jobs", "compare", site.jobs["failed"])[0] == 5


def test_jobs_that_were_measured_otherwise_have_a_table_of_their_own(spq, site):
    other = add(site.database)
    few = result(75_000_000, 0.03)
    few["rows"] = [row | {"windows": 8} for row in few["rows"]]
    take(site.database, other).succeed(result=few, layers=[], metrics=[], files=[])
    code, out, err = spq("jobs", "compare", site.jobs["better"], other, site.jobs["failed"])
    assert code == 0
    tables = out.split("\n\n")
    assert len([one for one in tables if "source" in one]) == 2
    assert "say nothing about one another" in err
    assert f"{site.jobs['failed']} (failed) has no figures" in err


def test_a_sweep_is_named_by_part_of_its_id(spq, site):
    whole = site.jobs["sweep"]
    for name in (whole, whole[-8:], "@last"):
        assert json.loads(spq("sweeps", "show", name, "--json")[1])["id"] == whole
    code, _, err = spq("sweeps", "csv", "ffffffff0000")
    assert code == 5
    assert "no sweep has 'ffffffff0000' in its id" in err
    assert spq("sweeps", "csv", whole[-8:])[1].startswith("number,")


def test_a_submission_says_everything_and_a_dry_run_makes_nothing(spq, site):
    asked = (
        "tiny-llama",
        "--local",
        "--recipe",
        "int8",
        "--dataset",
        "builtin",
        "--limit",
        "4",
        "--label",
        "run=9",
        "--no-throughput",
    )
    code, out, _ = spq("jobs", "submit", *asked, "--dry-run")
    assert code == 0
    assert "of the source" in out
    assert "jobs ahead" in out
    made = {
        spq("jobs", "submit", *asked, "--idempotency-key", "once")[1].split()[-1] for _ in range(2)
    }
    assert len(made) == 1
    _, out, _ = spq("jobs", "show", made.pop(), "--json")
    job = json.loads(out)
    assert job["labels"] == {"run": "9"}
    assert job["request"]["evaluation"]["throughput"] is False
    assert spq("jobs", "label", job["id"], "run=", "team=nlp")[1].strip() == "team=nlp"
    assert spq("jobs", "cancel", job["id"])[1].strip() == "canceled"
    assert spq("jobs", "delete", job["id"])[0] == 0
    assert spq("jobs", "submit", "a/b", "--label", "nonsense")[0] == 2
    code, _, err = spq("jobs", "submit", "nowhere", "--local")
    assert (code, "SPQ_MODEL_DIRS" in err) == (5, True)


def test_whoever_asks_learns_of_the_service(spq, site):
    assert "alice at http://" in spq("whoami")[1]
    _, out, _ = spq("workers")
    assert "w1" in out
    assert "jobs wait" in out
    assert "tiny-llama" in spq("models")[1]
    assert "wikitext2" in spq("datasets")[1]
    assert "/ui/#code=" in spq("open", "--print")[1]


def test_a_key_is_tried_before_it_is_kept(site, spq, monkeypatch, tmp_path):
    monkeypatch.setattr("click.prompt", lambda *_words, **_options: site.key())
    file = tmp_path / "new" / "key"
    code, out, _ = spq("login", "--key-file", str(file))
    assert (code, "as alice" in out) == (0, True)
    assert file.stat().st_mode & 0o777 == 0o600
    assert site.key() not in out
    monkeypatch.delenv("SPQ_API_KEY")
    assert spq("jobs", "--key-file", str(file), "list")[0] == 0


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_printed_for_a_shell(spq, shell):
    assert "_SPQ_COMPLETE" in spq("completion", shell)[1]


@pytest.fixture
def completed(spq, monkeypatch):
    """What a shell offers behind a line."""

    def offer(line):
        monkeypatch.setenv("COMP_WORDS", line)
        monkeypatch.setenv("COMP_CWORD", str(len(line.split(" ")) - 1))
        monkeypatch.setenv("_SPQ_COMPLETE", "bash_complete")
        return [one.partition(",")[2] for one in spq()[1].split()]

    return offer


@pytest.mark.parametrize(
    "line",
    ["jobs submit org/model --recipe ba", "jobs list --recipe ba", "compress ./model --recipe ba", "estimate org/model --recipe ba", "recipes ba"],
)  # fmt: skip
def test_recipes_are_completed_wherever_one_is_named(completed, line):
    assert completed(f"spq {line}") == ["balanced"]


def test_what_is_no_recipe_may_be_a_file(completed):
    assert completed("spq recipes ./mine") == ["./mine"]
    assert completed("spq sweep ./model fron") == ["frontier"]
    assert completed("spq sweeps submit org/model fron") == ["frontier"]


@pytest.mark.parametrize("command", ["jobs show", "jobs wait", "jobs compare", "jobs logs", "wait"])
def test_jobs_are_completed_wherever_one_is_named(completed, site, monkeypatch, command):
    gate = site.jobs["gate"][-8:]
    assert completed(f"spq {command} {gate[:6]}") == [gate]
    assert "@last" in completed(f"spq {command} ")
    monkeypatch.setenv("SPQ_URL", "http://127.0.0.1:9")
    assert completed(f"spq {command} ") == []


def test_sweeps_are_completed(completed, site):
    assert completed(f"spq sweeps show {site.jobs['sweep'][-8:-2]}") == [site.jobs["sweep"][-8:]]


def test_a_day_is_a_moment_here(spq):
    assert spq("jobs", "list", "--since", "2000-01-31", "-q")[1].count("\n") > 5
    assert spq("jobs", "list", "--since", "2100-01-31", "-q")[1] == ""
    code, _, err = spq("jobs", "list", "--since", "yesterday")
    assert code == 2
    assert "write 2030-01-31" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("submit", "a/b/c"), "must be owner/name as on the Hub"),
        (("submit", "a/b", "--label", "Bad!=x"), "must be 1 to 63 letters"),
        (("submit", "a/b", "--dataset", "builtn"), "spq datasets"),
        (("list", "--sort", "foo"), "must be one of created_at"),
        (("submit", "../up", "--local"), "the name of a folder in SPQ_MODEL_DIRS"),
    ],
)
def test_a_refusal_says_the_rule_in_words(spq, arguments, words):
    code, _, err = spq("jobs", *arguments)
    assert code == 5
    assert words in err
    assert "pattern" not in err


def test_a_mistyped_command_is_guessed(spq):
    code, _, err = spq("job", "list")
    assert (code, "Did you mean jobs" in err) == (2, True)
    for arguments in (("-h",), ("jobs", "-h"), ("jobs", "submit", "-h")):
        assert "exit codes" in spq(*arguments)[1] or "spq jobs" in spq(*arguments)[1]


def test_tables_are_as_wide_as_they_need():
    text = table(("name", "bytes"), [("a", "5"), ("long name", "1234")])
    assert text.splitlines() == ["name       bytes", "a              5", "long name   1234"]
    assert [in_bytes(one) for one in (None, 0, 999, 999_600, 75_301_479, 2.5e12)] == [
        "–",
        "0 B",
        "999 B",
        "1 MB",
        "75.3 MB",
        "2.5 TB",
    ]
    assert [duration(one) for one in (0, 59, 61, 7322)] == ["0 s", "59 s", "1 min", "2 h 2 min"]
