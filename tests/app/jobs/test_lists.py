"""Lists, counts and actions for many jobs, on Postgres and on SQLite."""

import gzip
import itertools
import json
from datetime import UTC, datetime, timedelta

import pytest

from app.db.models import Job
from app.db.waiting_jobs import expected_starts
from app.db.workers import note_presence
from tests.app.jobs.test_router import problem, start


def rows(size, kl, **more):
    common = {
        "dataset": "wikitext2",
        "windows": 32,
        "tokens": 32736,
        "perplexity": 20.0,
        "perplexity_se": 0.5,
    }
    source = common | {
        "name": "source",
        "bytes_on_disk": 1000,
        "kl": None,
        "decode_tokens_per_second": 8.0,
    }
    int8 = common | {"name": "int8", "bytes_on_disk": 500, "kl": 0.004, "kl_se": 0.0001}
    own = {
        "perplexity_ratio": 1.02,
        "perplexity_ratio_se": 0.001,
        "kl_se": 0.0001,
        "decode_tokens_per_second": 12.0,
    }
    return [
        source,
        int8,
        common | own | {"name": "result", "bytes_on_disk": size, "kl": kl, "top1": 0.9} | more,
    ]


def finish(api, job_id, size=400, kl=0.01):
    start(api, job_id).succeed(result={"rows": rows(size, kl)}, layers=[], metrics=[], files=[])


def listed(api, **query):
    answer = api.client.get("/jobs", params=query, headers=api.headers())
    assert answer.status_code == 200, answer.text
    return answer.json()


def ids(api, **query):
    return [one["id"] for one in listed(api, **query)["data"]]


def test_a_row_tells_what_a_table_shows(api):
    done = api.submit(labels={"team": "nlp"})
    finish(api, done["id"])
    (row,) = listed(api, view="row")["data"]
    assert (row["recipe"], row["status"], row["labels"]) == ("int8", "succeeded", {"team": "nlp"})
    figures = row["figures"]
    assert figures["bytes_ratio"] == 0.4
    assert (figures["kl"], figures["kl_se"]) == (0.01, 0.0001)
    assert figures["compared"] == "+2.00% ± 0.10%, worse"
    assert figures["decode_ratio"] == 1.5
    assert row["verdict"]["word"] == "mixed"
    assert "plain INT8: 50.0% of the source's bytes" in row["verdict"]["sentence"]
    whole = api.client.get(f"/jobs/{done['id']}", headers=api.headers()).json()
    assert whole["verdict"] == row["verdict"]


def test_filters_choose_and_counts_agree(api):
    made = [api.submit(labels={"run": str(number)}) for number in range(3)]
    other = api.submit(recipe={"extends": "small", "metadata": {"name": "mine"}})
    finish(api, made[0]["id"])
    everything = [other["id"], *(one["id"] for one in reversed(made))]
    assert ids(api) == everything
    assert ids(api, status="queued,running") == everything[:3]
    assert ids(api, status="succeeded") == [made[0]["id"]]
    assert ids(api, recipe="mine") == [other["id"]]
    assert ids(api, q="MINE") == [other["id"]]
    assert ids(api, q=made[1]["id"][-6:]) == [made[1]["id"]]
    assert ids(api, q="%") == ids(api, q="{") == [], "it is text, no pattern, and no JSON"
    assert ids(api, id_part=made[1]["id"][-6:]) == [made[1]["id"]]
    assert ids(api, id_part="tiny") == []
    umlaut = api.submit(tenant="carol", labels={"wer": "Jürgen"})
    found = api.client.get("/jobs?q=jürg", headers=api.headers("carol")).json()["data"]
    assert [one["id"] for one in found] in ([umlaut["id"]], []), "SQLite folds ASCII only"
    exact = api.client.get("/jobs?q=ürgen", headers=api.headers("carol")).json()["data"]
    assert [one["id"] for one in exact] == [umlaut["id"]]
    assert ids(api, **{"label.run": "2"}) == [made[2]["id"]]
    assert ids(api, ids=f"{made[1]['id']},{made[2]['id']},job_none") == [
        made[2]["id"],
        made[1]["id"],
    ]
    middle = made[1]["created_at"]
    assert ids(api, created_before=middle) == [made[0]["id"]]
    assert ids(api, created_after=middle) == everything[:2]
    counts = api.client.get("/jobs/counts", headers=api.headers()).json()
    assert counts["total"] == 4
    assert counts["by_status"]["queued"] == 3
    assert counts["by_status"]["failed"] == 0
    one = api.client.get("/jobs/counts?recipe=mine", headers=api.headers()).json()
    assert one["total"] == 1
    api.submit(tenant="bob")
    assert api.client.get("/jobs/counts", headers=api.headers()).json()["total"] == 4


@pytest.mark.parametrize(
    "query", ["status=done", "status=queued,", "sort=colour", "view=table", "ids=a,,b"]
)
def test_what_no_list_has_is_refused(api, query):
    problem(api.client.get(f"/jobs?{query}", headers=api.headers()), 422, "invalid_request")


@pytest.mark.parametrize(
    "sort",
    [
        "kl",
        "-kl",
        "bytes_ratio",
        "-perplexity_ratio",
        "model",
        "-model",
        "created_at",
        "finished_at",
    ],
)
def test_sorted_pages_cover_every_job_once_and_those_without_a_figure_come_last(api, sort):
    figures = [(400, 0.01), (300, 0.5), (400, 0.01), (450, 0.001)]
    for size, kl in figures:
        finish(api, api.submit()["id"], size, kl)
    unfinished = [api.submit()["id"] for _ in range(2)]
    seen, after = [], None
    for _ in range(10):
        page = listed(api, sort=sort, limit=2, view="row", **({"after": after} if after else {}))
        seen += page["data"]
        after = page["next_cursor"]
        if not page["has_more"]:
            break
    assert len({one["id"] for one in seen}) == len(seen) == 6
    key = sort.removeprefix("-")
    if key in {"kl", "bytes_ratio", "perplexity_ratio"}:
        assert {one["id"] for one in seen[4:]} == set(unfinished)
        values = [one["figures"][key] for one in seen[:4]]
        assert values == sorted(values, reverse=sort.startswith("-"))
    if key == "created_at":
        assert [one["id"] for one in seen[-2:]] == unfinished


def test_a_cursor_serves_its_own_order_only(api):
    for _ in range(3):
        api.submit()
    cursor = listed(api, limit=1)["next_cursor"]
    answer = api.client.get("/jobs", params={"sort": "kl", "after": cursor}, headers=api.headers())
    problem(answer, 400, "invalid_cursor")


def test_long_lists_are_compressed_for_who_can_read_that(api):
    for _ in range(5):
        api.submit()
    plain = api.client.get("/jobs", headers=api.headers() | {"Accept-Encoding": "identity"})
    assert "content-encoding" not in plain.headers
    packed = api.client.get("/jobs", headers=api.headers() | {"Accept-Encoding": "gzip"})
    assert packed.headers["content-encoding"] == "gzip"
    assert packed.json() == plain.json()
    assert int(packed.headers["content-length"]) < len(plain.content) / 3
    assert gzip.compress(plain.content)
    assert packed.headers["etag"] == plain.headers["etag"]


def test_a_queued_job_knows_its_place(api):
    first, second = api.submit(tenant="bob"), api.submit()
    job = api.client.get(f"/jobs/{second['id']}", headers=api.headers()).json()
    assert job["queue"] == {"position": 2, "running": 0, "workers": 0, "estimated_start_at": None}
    note_presence(api.database, "w1", {})
    note_presence(api.database, "w2", {})
    attempt = start(api, first["id"])
    job = api.client.get(f"/jobs/{second['id']}", headers=api.headers()).json()
    assert (job["queue"]["position"], job["queue"]["running"], job["queue"]["workers"]) == (1, 1, 2)
    assert job["queue"]["estimated_start_at"] is not None, "a worker is free"
    third = api.submit()
    attempt.progress("compress", dict(PROGRESS), run_left=600.0)
    place = listed(api, view="row", ids=third["id"])["data"][0]["queue"]
    assert place["position"] == 2
    running = api.client.get(f"/jobs/{first['id']}", headers=api.headers("bob")).json()
    assert running["queue"] is None


PROGRESS = {
    "stage": "compress",
    "done": 1,
    "total": 9,
    "unit": "blocks",
    "fraction": 0.1,
    "message": "",
}
NOW = datetime(2030, 1, 1, tzinfo=UTC)


def minutes(*values):
    return [None if one is None else NOW + timedelta(minutes=one) for one in values]


@pytest.mark.parametrize(
    ("workers", "ends", "length", "expected"),
    [
        (2, [], 10, [0, 0, 10, 10]),
        (2, [5], 10, [0, 5, 10, 15]),
        (1, [5], 10, [5, 15, 25, 35]),
        (1, [-5], 10, [0, 10, 20, 30]),
        (2, [None], 10, [0, None, None, None]),
        (2, [], None, [0, 0, None, None]),
        (0, [], 10, [None] * 4),
        (1, [5, 7], 10, [5, 15, 25, 35]),
    ],
)
def test_expected_starts(workers, ends, length, expected):
    usual = None if length is None else timedelta(minutes=length)
    assert expected_starts(4, workers, minutes(*ends), usual, NOW) == minutes(*expected)


def test_why_an_attempt_ended_is_told_while_the_job_waits_again(api):
    job = api.submit()
    assert start(api, job["id"]).give_back("hub_unavailable")
    found = api.client.get(f"/jobs/{job['id']}", headers=api.headers()).json()
    assert found["status"] == "queued"
    assert (found["last_attempt"]["number"], found["last_attempt"]["reason"]) == (
        1,
        "hub_unavailable",
    )
    assert listed(api, view="row")["data"][0]["last_attempt"] == found["last_attempt"]


def test_stages_follow_the_course_of_a_run(api):
    job = api.submit(recipe="small", output={"repo_id": "me/out"})
    planned = [one["id"] for one in job["stages"]]
    assert planned == [
        "download",
        "preflight",
        "sensitivity",
        "compress",
        "load_gate",
        "int8",
        "speed",
        "measure",
        "publish",
    ]
    assert {one["state"] for one in job["stages"]} == {"planned"}
    attempt = start(api, job["id"])
    begun = {"started_at": "2030-01-01T00:00:00+00:00", "ended_at": None}
    times = {
        "download": {**begun, "ended_at": "2030-01-01T00:01:00+00:00"},
        "sensitivity": begun | {"done": 3, "total": 60},
    }
    progress = {
        "done": 3, "total": 60, "unit": "layers", "fraction": 0.05, "message": "", "stage": "sensitivity",
        "stage_id": "sensitivity", "overall_fraction": 0.2, "stages": times,
    }  # fmt: skip
    attempt.progress("sensitivity", progress)
    found = api.client.get(f"/jobs/{job['id']}", headers=api.headers()).json()
    states = {one["id"]: one["state"] for one in found["stages"]}
    assert states["download"] == "done"
    assert states["preflight"] == "skipped"
    assert states["sensitivity"] == "running"
    assert states["compress"] == "planned"
    assert found["progress"]["overall_fraction"] == 0.2
    (row,) = listed(api, view="row")["data"]
    assert (row["stage_number"], row["stage_count"], row["overall_fraction"]) == (3, 9, 0.2)
    events = api.client.get(f"/jobs/{job['id']}/events", headers=api.headers()).json()["data"]
    assert "stages" not in events[-1]["data"], "history does not repeat it again and again"
    attempt.fail({"code": "internal", "message": "no"})
    found = api.client.get(f"/jobs/{job['id']}", headers=api.headers()).json()
    assert {one["id"]: one["state"] for one in found["stages"]}["sensitivity"] == "stopped"
    last = next(one for one in found["stages"] if one["id"] == "sensitivity")
    assert last["ended_at"] == found["finished_at"], "it goes on no longer"


def test_labels_are_set_and_removed(api):
    job = api.submit(labels={"a": "1", "b": "2"})
    url = f"/jobs/{job['id']}"
    changed = api.client.patch(url, json={"labels": {"b": None, "c": "3"}}, headers=api.headers())
    assert changed.json()["labels"] == {"a": "1", "c": "3"}
    assert changed.json()["version"] == job["version"] + 1
    same = api.client.patch(url, json={"labels": {"c": "3"}}, headers=api.headers())
    assert same.json()["version"] == job["version"] + 1, "nothing changed"
    many = {f"l{number}": "x" for number in range(16)}
    problem(
        api.client.patch(url, json={"labels": many}, headers=api.headers()), 422, "invalid_request"
    )
    problem(
        api.client.patch(url, json={"labels": {"a b": "x"}}, headers=api.headers()),
        422,
        "invalid_request",
    )
    problem(
        api.client.patch(url, json={"labels": {"a": "x"}}, headers=api.headers("bob")),
        404,
        "job_not_found",
    )
    reader = api.headers(scopes=("jobs:read",))
    problem(
        api.client.patch(url, json={"labels": {"a": "x"}}, headers=reader), 403, "permission_denied"
    )


def batch(api, **body):
    answer = api.client.post("/jobs/batch", json=body, headers=api.headers())
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_one_action_for_many_jobs_tells_what_became_of_each(api):
    jobs = [api.submit()["id"] for _ in range(3)]
    foreign = api.submit(tenant="bob")["id"]
    finish(api, jobs[0])
    asked = [*jobs, foreign, "nonsense"]
    tried = batch(api, action="cancel", ids=asked, dry_run=True)
    assert sorted(tried["done"]) == sorted(jobs[1:])
    assert api.client.get(f"/jobs/{jobs[1]}", headers=api.headers()).json()["status"] == "queued"
    done = batch(api, action="cancel", ids=asked)
    assert sorted(done["done"]) == sorted(jobs[1:])
    assert done["passed_over"] == [jobs[0]]
    assert {one["id"] for one in done["refused"]} == {foreign, "nonsense"}
    assert (
        api.client.get(f"/jobs/{foreign}", headers=api.headers("bob")).json()["status"] == "queued"
    )
    again = batch(api, action="retry", filter={"status": ["canceled"]})
    assert len(again["made"]) == 2
    retried = api.client.get(f"/jobs/{again['made'][0]}", headers=api.headers()).json()
    assert retried["retry_of"] == again["done"][0]
    labelled = batch(api, action="label", ids=jobs, labels={"old": "yes"})
    assert len(labelled["done"]) == 3
    gone = batch(api, action="delete", filter={"labels": {"old": "yes"}})
    assert sorted(gone["done"]) == sorted(jobs)
    assert len(listed(api)["data"]) == 2


def test_a_batch_goes_on_where_the_one_before_ended_and_does_nothing_twice(api, monkeypatch):
    monkeypatch.setattr("app.jobs.batch.MOST", 2)
    jobs = [api.submit()["id"] for _ in range(5)]
    finish(api, api.submit()["id"])
    batch(api, action="cancel", ids=jobs[:2])
    batch(api, action="cancel", ids=jobs[2:4])
    done, after = [], None
    for _ in range(5):
        found = batch(
            api,
            action="retry",
            filter={"status": ["canceled"]},
            **({"after": after} if after else {}),
        )
        done += found["done"]
        after = found["next_after"]
        if not found["has_more"]:
            break
    assert sorted(done) == sorted(jobs[:4])
    queued = batch(api, action="cancel", filter={"q": "org/tiny"}, dry_run=True)
    assert len(queued["done"]) == 2, "jobs that have ended are not counted"


@pytest.mark.parametrize("empty", [{"status": []}, {"model": None}, {"labels": {}}, {"q": None}])
def test_a_filter_that_says_nothing_is_not_taken_for_all_jobs(api, empty):
    body = {"action": "delete", "filter": empty}
    problem(
        api.client.post("/jobs/batch", json=body, headers=api.headers()), 422, "invalid_request"
    )


@pytest.mark.parametrize(
    "body",
    [
        {"action": "cancel"}, {"action": "cancel", "ids": []}, {"action": "explode", "ids": ["a"]},
        {"action": "cancel", "ids": ["a"], "filter": {"q": "x"}}, {"action": "label", "ids": ["a"]},
        {"action": "cancel", "ids": ["a"], "labels": {"a": "b"}}, {"action": "delete", "filter": {}},
    ],
)  # fmt: skip
def test_a_batch_that_says_too_little_or_too_much_is_refused(api, body):
    problem(
        api.client.post("/jobs/batch", json=body, headers=api.headers()), 422, "invalid_request"
    )


def test_a_dry_run_makes_nothing_and_refuses_what_a_submission_would(api):
    body = {"model": {"path": "tiny-llama"}, "recipe": "small"}
    plan = api.client.post("/jobs?dry_run=true", json=body, headers=api.headers())
    assert plan.status_code == 200, plan.text
    found = plan.json()
    assert found["estimate"]["artifact_bytes"]["expected"] > 0
    assert found["queue"]["position"] == 1
    assert [one["id"] for one in found["stages"]][:2] == ["preflight", "sensitivity"]
    assert listed(api)["data"] == []
    impossible = body | {"recipe": {"extends": "small", "target": {"bytes_ratio": 0.01}}}
    words = {
        problem(api.client.post(url, json=impossible, headers=api.headers()), 422, "invalid_recipe")["detail"]
        for url in ("/jobs?dry_run=true", "/jobs", "/estimates")
    }  # fmt: skip
    assert len(words) == 1, "three ways to ask, one answer"


def test_ten_thousand_jobs_are_listed_and_counted(api):
    first = api.submit()
    with api.database.write() as session:
        columns = {
            name: value
            for name, value in vars(session.get(Job, first["id"])).items()
            if name in Job.__table__.c
        }
        begun = datetime.now(UTC) - timedelta(days=1)
        many = [
            columns | {"id": f"job_{number:032x}", "created_at": begun + timedelta(seconds=number)}
            for number in range(2000)
        ]
        session.execute(Job.__table__.insert(), many)
    counts = api.client.get("/jobs/counts", headers=api.headers()).json()
    assert counts["total"] == 2001
    seen, after = 0, None
    for _ in itertools.count():
        page = listed(
            api, limit=100, view="row", sort="model", **({"after": after} if after else {})
        )
        seen += len(page["data"])
        after = page["next_cursor"]
        if after is None:
            break
    assert seen == 2001
    assert json.dumps(page)


@pytest.mark.parametrize("path", ["/jobs", "/jobs/counts"])
def test_a_filter_that_is_not_known_shows_nothing_rather_than_all(api, path):
    refused = api.client.get(f"{path}?statuss=failed", headers=api.headers())
    assert (refused.status_code, refused.json()["code"]) == (422, "unknown_filter")
    assert "did you mean status?" in refused.json()["detail"]
