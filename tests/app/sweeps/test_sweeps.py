"""Sweeps as a client sees them, on Postgres and on SQLite, with workers played by the test."""

import csv
import io
import random
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import event, func, select

from app.db.attempts import Attempt, FinishedFile, claim
from app.db.models import Job, JobSecret, WebhookDelivery
from app.db.quotas import set_limits
from app.db.sweep_models import SweepEvent, SweepMember, SweepRow
from app.db.sweep_steps import job_states
from app.domain.job_status import TERMINAL
from app.domain.sweep_status import ENDED, MEMBER_ENDED
from app.sweeps.schemas import EXAMPLES
from tests.app.jobs.test_router import problem

RECIPES = ["int8", "balanced", "small", "spq-paper"]
LOCAL = {
    "model": {"path": "tiny-llama"},
    "sweep": {"recipes": ["int8", "gptq-8", "gptq-4", "spq-paper"]},
}
"""Of which no commit is to be found out."""
LOCAL_MODEL = {"model": LOCAL["model"]}


def submit(api, sweep=None, headers=None, **changes):
    changes |= {} if sweep is None else {"sweep": sweep}
    body = {"model": {"repo_id": "org/tiny"}, "sweep": {"recipes": RECIPES}} | changes
    answer = api.client.post("/sweeps", json=body, headers=headers or api.headers())
    assert answer.status_code == 202, answer.text
    return answer.json()


def advance(api):
    api.client.app.state.controller.advance()


def get(api, sweep):
    answer = api.client.get(f"/sweeps/{sweep['id']}", headers=api.headers())
    assert answer.status_code == 200, answer.text
    return answer.json()


def post(api, sweep, action):
    return api.client.post(f"/sweeps/{sweep['id']}/{action}", headers=api.headers())


def result(size, kl):
    common = {"dataset": "wikitext2", "windows": 32, "perplexity": 20.0}
    rows = [
        common | {"name": "source", "bytes_on_disk": 1000, "kl": None},
        common | {"name": "int8", "bytes_on_disk": 500, "kl": 0.004, "kl_se": 0.0001},
        common | {"name": "result", "bytes_on_disk": size, "kl": kl, "kl_se": kl / 100},
    ]
    return {"rows": rows, "measured": {"seconds": 60.0}, "load_check": {}, "missing": None}


def begin(api, job_id):
    found = claim(api.database, job_id, "w", 60)
    return None if found is None else Attempt(api.database, found)


def work(api, job_id, size=400, kl=0.01, error=None, commit=None):
    """Play a worker that takes a job and ends it."""
    attempt = begin(api, job_id)
    if commit:
        attempt.source_commit(commit)
    if error:
        attempt.fail({"code": error, "message": "no"}, result=result(size, kl) if error == "quality_gate_failed" else None)  # fmt: skip
    else:
        files = [FinishedFile(path="model.safetensors", bytes=size, sha256="0" * 64)]
        attempt.succeed(result=result(size, kl), layers=[], metrics=[], files=files)


def queued(api, sweep):
    return {
        one["number"]: one["job_id"] for one in get(api, sweep)["members"] if one["status"] == "queued"
    }  # fmt: skip


def queued_finals(api, sweep):
    finals = {one["number"]: one["final"] for one in get(api, sweep)["members"] if one["final"]}
    return {number: one["job_id"] for number, one in finals.items() if one["status"] == "queued"}


def finish(api, sweep, outcome=lambda number: {}):
    """Play workers until the sweep has ended."""
    for _ in range(40):
        advance(api)
        if get(api, sweep)["status"] in ENDED:
            return get(api, sweep)
        for number, job_id in queued(api, sweep).items():
            work(api, job_id, **outcome(number))
        for job_id in queued_finals(api, sweep).values():
            work(api, job_id)
    raise AssertionError(get(api, sweep))


def test_one_member_goes_first_and_the_others_share_what_it_measured(api):
    sweep = submit(api, max_parallel=2, labels={"team": "nlp"})
    assert [one["status"] for one in sweep["members"]] == ["waiting"] * 4
    advance(api)
    advance(api)
    first = queued(api, sweep)
    assert list(first) == [1], "the others wait for its figures of the source"
    work(api, first[1], commit="abc123")
    advance(api)
    assert list(queued(api, sweep)) == [2, 3]
    jobs = api.client.get(f"/jobs?sweep={sweep['id']}", headers=api.headers()).json()["data"]
    assert sorted(one["sweep_member"] for one in jobs) == [1, 2, 3]
    for job in jobs:
        assert job["labels"] == {"team": "nlp"}
        assert job["request"]["evaluation"]["throughput"] is False
        wanted = "main" if job["sweep_member"] == 1 else "abc123"
        assert job["request"]["model"]["revision"] == wanted, "all are made of one commit"
    assert get(api, sweep)["source_commit"] == "abc123"
    done = finish(api, sweep)
    assert done["counts"] == {"succeeded": 4}
    assert done["beside"].keys() == {"source", "int8"}


def test_without_reuse_nobody_waits_for_anybody(api):
    sweep = submit(api, max_parallel=3, evaluation={"reuse": False}, **LOCAL)
    advance(api)
    assert list(queued(api, sweep)) == [1, 2, 3]


def test_all_members_are_made_of_one_commit(api):
    """Nobody else begins before it is known, though the first one fails before it is."""
    sweep = submit(api, max_parallel=3, evaluation={"reuse": False})
    advance(api)
    first = queued(api, sweep)
    assert list(first) == [1]
    work(api, first[1], error="hub_unavailable")
    advance(api)
    second = queued(api, sweep)
    assert list(second) == [2]
    begun = begin(api, second[2])
    begun.source_commit("abc123")
    version = get(api, sweep)["version"]
    advance(api)
    found = get(api, sweep)
    assert found["source_commit"] == "abc123"
    assert found["version"] > version
    assert list(queued(api, sweep)) == [3, 4]
    for job in queued(api, sweep).values():
        request = api.client.get(f"/jobs/{job}", headers=api.headers()).json()["request"]
        assert request["model"]["revision"] == "abc123"


def test_the_front_the_best_and_what_is_kept(api):
    sizes = {1: (500, 0.004), 2: (400, 0.01), 3: (300, 0.03), 4: (450, 0.2)}
    objective = {"minimize": "kl", "subject_to": {"bytes_ratio": {"max": 0.45}}}
    sweep = submit(api, {"name": "mine", "recipes": RECIPES, "objective": objective})
    outcome = {number: {"size": size, "kl": kl} for number, (size, kl) in sizes.items()}
    done = finish(api, sweep, outcome.__getitem__)
    assert (done["status"], done["front"], done["best"], done["tied"]) == (
        "finished",
        [1, 2, 3],
        2,
        [],
    )
    assert done["members"][1]["row"]["bytes_ratio"] == 0.4
    assert done["finished_at"]
    files = {}
    for member in done["members"]:
        job = api.client.get(f"/jobs/{member['job_id']}", headers=api.headers()).json()
        listed = api.client.get(f"/jobs/{job['id']}/artifacts", headers=api.headers()).json()
        files[member["number"]] = len(listed["data"])
        assert job["result"]["rows"], "figures stay of all"
    assert files == {1: 1, 2: 1, 3: 1, 4: 0}
    lost = done["members"][3]["job_id"]
    gone = api.client.get(f"/jobs/{lost}/artifacts/model.safetensors", headers=api.headers())
    assert "because its sweep keeps others" in problem(gone, 410, "artifact_expired")["detail"]
    table = api.client.get(f"/sweeps/{sweep['id']}/members.csv", headers=api.headers())
    rows = list(csv.DictReader(io.StringIO(table.text)))
    assert [row["on_front"] for row in rows] == ["True", "True", "True", "False"]
    assert [float(row["kl"]) for row in rows] == [kl for _, kl in sizes.values()]


def test_its_history_has_no_gap_and_streams(api):
    sweep = submit(api, {"recipes": RECIPES[:2]})
    finish(api, sweep)
    url = f"/sweeps/{sweep['id']}/events"
    events = api.client.get(url, headers=api.headers()).json()["data"]
    assert [one["seq"] for one in events] == list(range(1, len(events) + 1))
    assert events[0]["data"] == {"status": "running"}
    assert events[-1]["data"]["status"] == "finished"
    told = [one["data"]["status"] for one in events if one["data"].get("number") == 1]
    assert told == ["queued", "succeeded"]
    streaming = api.headers() | {"Accept": "text/event-stream"}
    with api.client.stream("GET", url, headers=streaming | {"Last-Event-ID": "1"}) as stream:
        text = "".join(stream.iter_text())
    assert text.count("event: ") == len(events) - 1
    last = streaming | {"Last-Event-ID": str(events[-1]["seq"])}
    assert api.client.get(url, headers=last).status_code == 204


def test_an_unchanged_sweep_costs_no_body(api):
    sweep = submit(api)
    found = api.client.get(f"/sweeps/{sweep['id']}", headers=api.headers())
    same = api.headers() | {"If-None-Match": found.headers["etag"]}
    assert api.client.get(f"/sweeps/{sweep['id']}", headers=same).status_code == 304
    advance(api)
    assert api.client.get(f"/sweeps/{sweep['id']}", headers=same).status_code == 200


def test_failed_members_keep_their_figures_and_are_tried_again_in_their_places(api):
    errors = {2: {"error": "quality_gate_failed", "kl": 0.5}, 3: {"error": "internal"}}
    sweep = submit(api)
    done = finish(api, sweep, lambda number: errors.get(number, {}))
    assert done["status"] == "finished"
    assert done["counts"] == {"succeeded": 2, "failed": 2}
    assert done["members"][1]["row"]["kl"] == 0.5
    assert 2 not in done["front"], "a member that failed its gates is not on the front"
    assert done["members"][2]["error"]["code"] == "internal"
    again = post(api, sweep, "retry").json()
    assert [one["status"] for one in again["members"]] == [
        "succeeded",
        "waiting",
        "waiting",
        "succeeded",
    ]
    assert (again["status"], again["finished_at"]) == ("running", None)
    final = finish(api, sweep)
    assert final["counts"] == {"succeeded": 4}
    assert final["members"][0]["job_id"] == done["members"][0]["job_id"], (
        "what is done is not done again"
    )
    assert (
        "no member that failed"
        in problem(post(api, sweep, "retry"), 409, "sweep_not_retryable")["detail"]
    )


def test_a_sweep_without_any_figures_has_failed(api):
    sweep = submit(api, {"recipes": RECIPES[:2]})
    done = finish(api, sweep, lambda _number: {"error": "unsafe_model"})
    assert (done["status"], done["best"]) == ("failed", None)


def test_cancelling_stops_what_runs_and_makes_nothing_more(api):
    sweep = submit(api, max_parallel=2, evaluation={"reuse": False}, **LOCAL)
    advance(api)
    jobs = queued(api, sweep)
    running = begin(api, jobs[1])
    assert post(api, sweep, "cancel").json()["status"] == "canceling"
    for _ in range(3):
        advance(api)
    found = get(api, sweep)
    assert [one["status"] for one in found["members"]] == [
        "canceling",
        "canceled",
        "skipped",
        "skipped",
    ]
    assert found["members"][3]["stopped"] == "canceled"
    assert found["status"] == "canceling", "a member is still running"
    problem(post(api, sweep, "resume"), 409, "sweep_ended")
    problem(api.client.delete(f"/sweeps/{sweep['id']}", headers=api.headers()), 409, "sweep_active")
    running.cancel()
    advance(api)
    assert get(api, sweep)["status"] == "canceled"
    assert post(api, sweep, "cancel").json()["status"] == "canceled", "twice is once"
    assert finish(api, post(api, sweep, "retry").json())["counts"] == {"succeeded": 4}


def test_a_paused_sweep_makes_nothing_until_it_is_resumed(api):
    sweep = submit(api)
    post(api, sweep, "pause")
    advance(api)
    assert get(api, sweep)["counts"] == {"waiting": 4}
    post(api, sweep, "resume")
    assert finish(api, sweep)["status"] == "finished"
    problem(post(api, sweep, "pause"), 409, "sweep_ended")


def test_members_count_for_quotas_when_they_are_released(api):
    with api.database.write() as session:
        set_limits(session, "alice", {"max_active_jobs": 2})
    sweep = submit(api, evaluation={"reuse": False}, max_parallel=4, **LOCAL)
    advance(api)
    assert list(queued(api, sweep)) == [1, 2]
    assert "max_active_jobs" in get(api, sweep)["waits_for"]
    version = get(api, sweep)["version"]
    advance(api)
    assert get(api, sweep)["version"] == version, "waiting is no news"
    assert finish(api, sweep)["waits_for"] is None
    submit(api)
    submit(api)
    third = api.client.post(
        "/sweeps",
        json={"model": {"repo_id": "org/tiny"}, "sweep": "baselines"},
        headers=api.headers(),
    )
    problem(third, 429, "quota_exceeded")


def test_the_smallest_member_that_keeps_a_limit_is_searched_for(api):
    search = {"method": "bisect", "base": "small", "field": "target.bytes_ratio", "low": 0.2, "high": 0.5, "tolerance": 0.02}  # fmt: skip
    document = {"search": search, "objective": {"minimize": "bytes_on_disk", "subject_to": {"kl": {"max": 0.02}}}}  # fmt: skip
    sweep = submit(api, document)

    def outcome(number):
        ratio = get(api, sweep)["members"][number - 1]["fields"]["target.bytes_ratio"]
        return {"size": int(1000 * ratio), "kl": 0.001 / (ratio - 0.19)}

    done = finish(api, sweep, outcome)
    values = {one["number"]: one["fields"]["target.bytes_ratio"] for one in done["members"]}
    assert list(values.values())[:3] == [0.5, 0.2, 0.35]
    assert 0.24 <= values[done["best"]] <= 0.26
    assert len(values) <= 7


def test_one_sweep_that_cannot_be_moved_on_keeps_no_other_from_it(api):
    broken, other = submit(api), submit(api)
    advance(api)
    with api.database.write() as session:
        session.get(SweepRow, broken["id"]).sweep = {"name": "mine", "colour": 1}
    work(api, queued(api, broken)[1])
    assert finish(api, other)["status"] == "finished"
    assert get(api, broken)["best"] is None, "it is still shown"


def test_artifacts_that_are_beaten_go_at_once_and_those_being_measured_stay(api):
    objective = {"name": "mine", "recipes": RECIPES, "keep": "best"}
    sweep = submit(api, objective, max_parallel=1)

    def files(number):
        job = get(api, sweep)["members"][number - 1]["job_id"]
        return len(api.client.get(f"/jobs/{job}/artifacts", headers=api.headers()).json()["data"])

    advance(api)
    work(api, queued(api, sweep)[1], kl=0.1)
    advance(api)
    first = get(api, sweep)["members"][0]["job_id"]
    with api.database.write() as session:
        session.get(Job, first).result = {
            **session.get(Job, first).result,
            "load_check": {"seconds": 1},
        }
    measuring = api.client.post(f"/jobs/{first}/measure", json={}, headers=api.headers())
    assert measuring.status_code == 202, measuring.text
    work(api, queued(api, sweep)[2], kl=0.01)
    advance(api)
    assert files(1) == 1, "somebody measures it"
    api.client.post(f"/jobs/{measuring.json()['id']}/cancel", headers=api.headers())
    work(api, queued(api, sweep)[3], kl=0.001)
    advance(api)
    assert (files(1), files(2), files(3)) == (0, 0, 1)


def test_a_job_that_its_sweep_has_not_seen_the_end_of_is_not_deleted(api):
    sweep = submit(api)
    advance(api)
    job = queued(api, sweep)[1]
    work(api, job)
    url = f"/jobs/{job}"
    assert (
        "its sweep"
        in problem(api.client.delete(url, headers=api.headers()), 409, "job_active")["detail"]
    )
    advance(api)
    assert api.client.delete(url, headers=api.headers()).status_code == 204
    assert get(api, sweep)["members"][0]["row"]["kl"] == 0.01, "figures outlive it"


def test_what_it_costs_to_look_does_not_grow_with_sweeps(api):
    seen = []

    def note(_connection, _cursor, statement, *_rest):
        seen.append(statement)

    def looked():
        seen.clear()
        event.listen(api.database.engine, "before_cursor_execute", note)
        advance(api)
        api.client.get("/sweeps", headers=api.headers())
        event.remove(api.database.engine, "before_cursor_execute", note)
        return len(seen)

    post(api, submit(api), "pause")
    one = looked()
    for _ in range(5):
        post(api, submit(api), "pause")
    assert looked() == one


def test_a_sweep_stops_at_its_target(api):
    sweep = submit(api, {"recipes": RECIPES, "early_stop": {"target": 0.02}}, max_parallel=1)
    done = finish(api, sweep)
    assert [one["status"] for one in done["members"]] == [
        "succeeded",
        "skipped",
        "skipped",
        "skipped",
    ]
    assert {one["stopped"] for one in done["members"][1:]} == {"target"}


def test_a_dry_run_makes_nothing(api):
    body = {"model": {"path": "tiny-llama"}, "sweep": {
        "recipes": ["int8", "balanced"],
        "objective": {"minimize": "kl", "subject_to": {"bytes_ratio": {"max": 0.45}}}}}  # fmt: skip
    answer = api.client.post("/sweeps?dry_run=true", json=body, headers=api.headers())
    assert answer.status_code == 200, answer.text
    plan = answer.json()
    assert [one["status"] for one in plan["members"]] == ["waiting", "waiting"]
    assert all(one["estimate"]["artifact_bytes"]["expected"] > 0 for one in plan["members"])
    assert plan["seconds"] > 0
    assert api.client.get("/sweeps", headers=api.headers()).json()["data"] == []


def test_members_that_cannot_work_are_told_at_once(api):
    too_small = {"extends": "small", "target": {"bytes_ratio": 0.01}}
    sweep = submit(api, {"recipes": [too_small, "int8"]}, model={"path": "tiny-llama"})
    first = sweep["members"][0]
    assert (first["status"], first["stopped"]) == ("skipped", "infeasible")
    assert "this model takes about" in first["error"]["message"]
    body = {"model": {"path": "tiny-llama"}, "sweep": {"recipes": [too_small]}}
    answer = api.client.post("/sweeps", json=body, headers=api.headers())
    assert "no member can be made" in problem(answer, 422, "invalid_recipe")["detail"]


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ({"sweep": "nowhere"}, "invalid_recipe", "there are baselines"),
        ({"sweep": {"recipes": ["no-such"]}}, "invalid_recipe", "no-such"),
        ({"sweep": {"recipes": ["int8"], "colour": 1}}, "invalid_recipe", "colour"),
        ({"sweep": {"recipes": ["int8"], "objective": {"maximize": "decode_tokens_per_second"}}}, "invalid_recipe", "cannot be compared"),
        ({"evaluation": {"throughput": True}}, "invalid_request", "speeds of members"),
        ({"evaluation": {"perplexity": ["nowhere"]}}, "unknown_dataset", "nowhere"),
        ({"dataset": "nowhere"}, "unknown_dataset", "nowhere"),
        ({"model": {"path": "nowhere"}}, "model_not_found", "nowhere"),
        ({"max_parallel": 0}, "invalid_request", "max_parallel"),
        ({"sweep": "/etc/passwd.yaml"}, "invalid_recipe", "no sweep"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_before_anything_is_made(api, change, code, words):
    body = {"model": {"repo_id": "org/tiny"}, "sweep": {"recipes": RECIPES}} | change
    answer = api.client.post("/sweeps", json=body, headers=api.headers())
    assert words in problem(answer, 422, code)["detail"]


def test_another_tenants_sweep_does_not_exist(api):
    sweep = submit(api)
    for method, path in (("GET", ""), ("POST", "/cancel"), ("POST", "/retry"), ("DELETE", ""), ("GET", "/events"), ("GET", "/members.csv")):  # fmt: skip
        url = f"/sweeps/{sweep['id']}{path}"
        problem(api.client.request(method, url, headers=api.headers("bob")), 404, "sweep_not_found")
    assert api.client.get("/sweeps", headers=api.headers("bob")).json()["data"] == []
    reader = api.headers("alice", ("jobs:read",))
    body = {"model": {"repo_id": "org/tiny"}, "sweep": "baselines"}
    problem(api.client.post("/sweeps", json=body, headers=reader), 403, "permission_denied")


def test_a_repeated_request_makes_one_sweep_and_pages_cover_all(api):
    once = api.headers() | {"Idempotency-Key": "k"}
    first, again = submit(api, headers=once), submit(api, headers=once)
    assert first == again
    others = [submit(api)["id"] for _ in range(4)]
    seen, after = [], None
    while True:
        query = {"limit": 2} | ({"after": after} if after else {})
        page = api.client.get("/sweeps", params=query, headers=api.headers()).json()
        seen += [one["id"] for one in page["data"]]
        after = page["next_cursor"]
        if not page["has_more"]:
            break
    assert seen == [*reversed(others), first["id"]]


def test_a_hub_token_serves_all_members_and_is_forgotten(api):
    sweep = submit(api, {"recipes": RECIPES[:2]}, hub_token="hf_secret")
    advance(api)
    with api.database.read() as session:
        job = queued(api, sweep)[1]
        assert session.get(JobSecret, job).sealed == session.get(SweepRow, sweep["id"]).sealed_token
    assert "hf_secret" not in str(get(api, sweep))
    done = finish(api, sweep, lambda number: {"error": "internal"} if number == 2 else {})
    with api.database.read() as session:
        assert session.get(SweepRow, sweep["id"]).sealed_token is None
    assert done["counts"] == {"succeeded": 1, "failed": 1}
    assert "hub_token" in problem(post(api, sweep, "retry"), 409, "sweep_not_retryable")["detail"]


def test_its_end_is_told_to_a_webhook(api):
    sweep = submit(api, {"recipes": RECIPES[:2]}, webhook={"url": "https://93.184.216.34/hook"})
    done = finish(api, sweep)
    with api.database.read() as session:
        (message,) = session.scalars(select(WebhookDelivery))
    assert (message.type, message.job_id) == ("sweep.finished", sweep["id"])
    assert message.payload["data"]["best"] == done["best"]


def test_a_deleted_sweep_leaves_its_jobs(api):
    sweep = submit(api, {"recipes": RECIPES[:2]})
    done = finish(api, sweep)
    assert api.client.delete(f"/sweeps/{sweep['id']}", headers=api.headers()).status_code == 204
    problem(api.client.get(f"/sweeps/{sweep['id']}", headers=api.headers()), 404, "sweep_not_found")
    job = done["members"][0]["job_id"]
    assert api.client.get(f"/jobs/{job}", headers=api.headers()).status_code == 200


def test_the_examples_of_the_document_are_accepted(api):
    for example in EXAMPLES:
        model = {"path": "tiny-llama"} if "path" in example["model"] else example["model"]
        body = example | {"model": model}
        answer = api.client.post("/sweeps", json=body, headers=api.headers())
        assert answer.status_code == 202, answer.text


def files_of(api, job_id):
    return len(api.client.get(f"/jobs/{job_id}/artifacts", headers=api.headers()).json()["data"])


SIZES = {1: (500, 0.004), 2: (400, 0.01), 3: (300, 0.03), 4: (450, 0.2)}


def by_size(number):
    return {"size": SIZES[number][0], "kl": SIZES[number][1]}


def run_members(api, sweep):
    """Play workers until every member is done."""
    for _ in range(20):
        advance(api)
        jobs = queued(api, sweep)
        for number, job_id in jobs.items():
            work(api, job_id, **by_size(number))
        if not jobs and queued_finals(api, sweep):
            return
    raise AssertionError(get(api, sweep))


def test_winners_are_measured_once_more_one_after_the_other_and_the_best_first(api):
    finals = {"members": "front", "confirm_on": ["builtin"], "limit": 64, "tasks": ["gsm8k"]}
    sweep = submit(api, {"recipes": RECIPES, "finals": finals, "keep": "none"})
    run_members(api, sweep)
    order = []
    while get(api, sweep)["status"] == "running":
        ((number, job_id),) = queued_finals(api, sweep).items()
        order.append(number)
        member = get(api, sweep)["members"][number - 1]
        request = api.client.get(f"/jobs/{job_id}", headers=api.headers()).json()["request"]
        assert request["measure_of"] == member["job_id"]
        assert request["evaluation"]["throughput"] is True
        assert request["evaluation"]["perplexity"] == ["builtin", "wikitext2"]
        assert (request["evaluation"]["limit"], request["evaluation"]["tasks"]) == (64, ["gsm8k"])
        own = api.client.get(f"/jobs/{member['job_id']}", headers=api.headers()).json()["request"]
        assert (own["evaluation"]["limit"], own["evaluation"]["tasks"]) != (64, ["gsm8k"])
        assert files_of(api, member["job_id"]) == 1, "it is needed, whatever is kept in the end"
        work(api, job_id, kl=0.5)
        advance(api)
    assert order == [1, 2, 3], "the best, then the rest of the front"
    done = get(api, sweep)
    assert done["status"] == "finished"
    assert done["best"] == 1, "what chose it stays what chose it"
    for member in done["members"][:3]:
        assert (member["final"]["status"], member["final"]["row"]["kl"]) == ("succeeded", 0.5)
        assert member["final"]["beside"].keys() == {"source", "int8"}
        assert files_of(api, member["job_id"]) == files_of(api, member["final"]["job_id"]) == 0
    assert done["members"][3]["final"] is None
    events = api.client.get(f"/sweeps/{sweep['id']}/events?limit=100", headers=api.headers()).json()
    told = [one["data"]["status"] for one in events["data"] if one["type"] == "final"]
    assert told == ["queued", "succeeded"] * 3


def test_the_best_is_published_and_a_failed_publication_is_tried_again(api):
    output = {"repo_id": "me/best", "private": False}
    objective = {"minimize": "bytes_on_disk", "subject_to": {"kl": {"max": 0.02}}}
    sweep = submit(
        api, {"recipes": RECIPES, "objective": objective, "keep": "none"}, publish=output
    )
    run_members(api, sweep)
    ((number, job_id),) = queued_finals(api, sweep).items()
    assert number == get(api, sweep)["best"] == 2
    request = api.client.get(f"/jobs/{job_id}", headers=api.headers()).json()["request"]
    assert request["output"] == output
    assert request["evaluation"]["throughput"] is False, "nobody asked for speeds"
    for member in get(api, sweep)["members"]:
        own = api.client.get(f"/jobs/{member['job_id']}", headers=api.headers()).json()
        assert own["request"]["output"] is None, "members are not published"
    work(api, job_id, error="hub_permission_denied")
    advance(api)
    done = get(api, sweep)
    assert done["status"] == "finished"
    assert done["members"][1]["final"]["error"]["code"] == "hub_permission_denied"
    assert files_of(api, done["members"][1]["job_id"]) == 1, "it can be made again"
    again = post(api, sweep, "retry").json()
    assert (again["status"], again["counts"]) == ("running", {"succeeded": 4}), (
        "only the final is made again"
    )
    done = finish(api, again)
    assert done["members"][1]["final"]["status"] == "succeeded"
    assert done["members"][1]["final"]["publishes"]


def test_nothing_is_published_where_no_member_keeps_the_limits(api):
    objective = {"minimize": "kl", "subject_to": {"kl": {"max": 1e-6}}}
    sweep = submit(
        api, {"recipes": RECIPES, "objective": objective}, publish={"repo_id": "me/best"}
    )
    done = finish(api, sweep)
    assert done["best"] is None
    assert not any(one["final"] for one in done["members"])


def test_a_sweep_that_is_canceled_or_paused_makes_no_finals(api):
    document = {"recipes": RECIPES[:2], "finals": {}}
    sweep = submit(api, document)
    run_members(api, sweep)
    (job_id,) = queued_finals(api, sweep).values()
    running = begin(api, job_id)
    assert post(api, sweep, "cancel").status_code == 200
    advance(api)
    assert get(api, sweep)["status"] == "canceling"
    assert get(api, sweep)["members"][0]["final"]["status"] == "canceling"
    problem(api.client.delete(f"/jobs/{job_id}", headers=api.headers()), 409, "job_active")
    running.cancel()
    advance(api)
    assert get(api, sweep)["status"] == "canceled"
    assert (
        finish(api, post(api, sweep, "retry").json())["members"][0]["final"]["status"]
        == "succeeded"
    )

    other = submit(api, document)
    advance(api)
    work(api, queued(api, other)[1])
    advance(api)
    post(api, other, "pause")
    work(api, queued(api, other)[2])
    for _ in range(3):
        advance(api)
    assert not queued_finals(api, other)
    assert get(api, other)["status"] == "paused"
    assert finish(api, post(api, other, "resume").json())["status"] == "finished"


def change(api, sweep, **body):
    return api.client.patch(f"/sweeps/{sweep['id']}", json=body, headers=api.headers())


def test_members_are_added_also_to_a_sweep_that_has_ended(api):
    sweep = submit(api, {"recipes": RECIPES[:2]}, evaluation={"reuse": False}, **LOCAL_MODEL)
    advance(api)
    grid = [{"base": "small", "over": {"target.bytes_ratio": [0.3, 0.4]}}]
    changed = change(
        api, sweep, max_parallel=1, recipes=["gptq-4", RECIPES[0]], grid=grid, labels={"a": "b"}
    )
    assert changed.status_code == 200, changed.text
    found = changed.json()
    assert [one["number"] for one in found["members"]] == [1, 2, 3, 4, 5], (
        "what is there is not added"
    )
    assert found["members"][4]["fields"]["target.bytes_ratio"] == 0.4
    assert found["members"][2]["estimate"], "they are compared with the model's headers, too"
    work(api, queued(api, sweep)[1])
    advance(api)
    assert list(queued(api, sweep)) == [2], "one at a time from now on"
    done = finish(api, sweep)
    assert done["counts"] == {"succeeded": 5}
    jobs = api.client.get(f"/jobs?sweep={sweep['id']}", headers=api.headers()).json()["data"]
    assert jobs[0]["labels"] == {"a": "b"}
    problem(change(api, sweep, max_parallel=2), 409, "sweep_ended")
    same = problem(change(api, sweep, recipes=[RECIPES[0]]), 422, "invalid_recipe")
    assert "members already" in same["detail"]
    more = change(api, sweep, recipes=["gptq-8"]).json()
    assert (more["status"], more["finished_at"]) == ("running", None)
    assert finish(api, sweep)["counts"] == {"succeeded": 6}


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({}, "invalid_request"),
        ({"max_parallel": 0}, "invalid_request"),
        ({"recipes": ["nope"]}, "invalid_recipe"),
        ({"grid": [{"base": "small", "over": {"colour": [1]}}]}, "invalid_recipe"),
        (
            {"grid": [{"base": "small", "over": {"a": list(range(40)), "b": list(range(20))}}]},
            "invalid_recipe",
        ),
    ],
)
def test_a_change_that_is_none_is_refused(api, body, code):
    sweep = submit(api, **LOCAL)
    problem(change(api, sweep, **body), 422, code)
    assert len(get(api, sweep)["members"]) == 4


def test_controllers_at_once_make_each_member_once(api):
    sweeps = [submit(api, evaluation={"reuse": False}, **LOCAL) for _ in range(4)]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: advance(api), range(24)))
    with api.database.read() as session:
        jobs = session.execute(
            select(Job.sweep_id, Job.sweep_member, func.count()).group_by(Job.sweep_id, Job.sweep_member)
        ).all()  # fmt: skip
    assert {(one[0], one[1]) for one in jobs} == {
        (sweep["id"], number) for sweep in sweeps for number in (1, 2, 3, 4)
    }
    assert {one[2] for one in jobs} == {1}


@pytest.mark.parametrize("seed", range(6))
def test_whatever_happens_in_whatever_order_the_rules_hold(api, seed):
    """Random requests, workers and lost jobs between steps of the controller."""
    chance = random.Random(seed)
    parallel = chance.randint(1, 3)
    body = dict(LOCAL) if chance.random() < 0.5 else {}
    if chance.random() < 0.5:
        body["sweep"] = body.get("sweep", {"recipes": RECIPES}) | {"finals": {"members": "front"}}
    sweep = submit(api, max_parallel=parallel, evaluation={"reuse": chance.random() < 0.5}, **body)
    attempts = []
    for _ in range(60):
        _happen(api, sweep, chance, attempts)
        check_rules(api, sweep["id"], parallel)
    post(api, sweep, "resume")
    while attempts:
        _end_one(api, chance, attempts)
    done = finish(api, sweep)
    assert all(one["status"] in MEMBER_ENDED for one in done["members"])


KINDS = (
    ["advance"] * 4
    + ["begin"] * 3
    + ["end"] * 3
    + ["pause", "resume", "retry", "delete", "add", "rarely"]
)


def _happen(api, sweep, chance, attempts):
    kind = chance.choice(KINDS)
    if kind == "advance":
        advance(api)
    elif kind == "begin":
        waiting = [*queued(api, sweep).values(), *queued_finals(api, sweep).values()]
        attempt = begin(api, chance.choice(waiting)) if waiting else None
        attempts += [] if attempt is None else [attempt]
    elif kind == "end":
        _end_one(api, chance, attempts)
    elif kind == "add":
        assert change(api, sweep, recipes=["smallest"]).status_code in {200, 409, 422}
    elif kind == "delete":
        jobs = [one["job_id"] for one in get(api, sweep)["members"] if one["job_id"]]
        for job in jobs[:1]:
            api.client.delete(f"/jobs/{job}", headers=api.headers())
    elif kind != "rarely" or chance.random() < 0.2:
        action = "cancel" if kind == "rarely" else kind
        assert post(api, sweep, action).status_code in {200, 409}


def _end_one(api, chance, attempts):
    if not attempts:
        return
    attempt = attempts.pop(chance.randrange(len(attempts)))
    with api.database.read() as session:
        status = session.get(Job, attempt.claim.job_id).status
    if status == "canceling":
        attempt.cancel()
    elif chance.random() < 0.3:
        attempt.fail({"code": "internal", "message": "no"})
    else:
        attempt.succeed(result=result(400, 0.01), layers=[], metrics=[], files=[])


def check_rules(api, sweep_id, parallel):
    with api.database.read() as session:
        row = session.get(SweepRow, sweep_id)
        members = list(session.scalars(select(SweepMember).where(SweepMember.sweep_id == sweep_id)))
        seqs = list(session.scalars(select(SweepEvent.seq).where(SweepEvent.sweep_id == sweep_id).order_by(SweepEvent.seq)))  # fmt: skip
        active = list(session.scalars(select(Job).where(Job.sweep_id == sweep_id, Job.status.not_in(TERMINAL))))  # fmt: skip
        states = job_states(session, sweep_id)
    assert seqs == list(range(1, row.last_event + 1))
    assert len(active) <= parallel
    assert len({job.sweep_member for job in active}) == len(active), (
        "a member has one job at a time"
    )
    finals = [one for one in members if one.final_job_id in {job.id for job in active}]
    assert {job.id for job in active} <= {
        known for one in members for known in (one.job_id, one.final_job_id)
    }, "no job is forgotten"
    assert len(finals) <= 1, "winners are measured one after the other"
    assert not finals or len(active) == 1, "and when all members have ended"
    if row.status in ENDED:
        assert not active
        assert all(one.status in MEMBER_ENDED for one in members)
    for one in members:
        if one.status in TERMINAL and one.number in states:
            assert states[one.number] in TERMINAL


def test_tasks_of_winners_must_be_known(api):
    body = {
        "model": {"repo_id": "org/tiny"},
        "sweep": {"recipes": ["int8"], "finals": {"tasks": ["no_such_task"]}},
    }
    refused = api.client.post("/sweeps", json=body, headers=api.headers())
    assert (refused.status_code, refused.json()["code"]) == (422, "unknown_task")
    assert "no_such_task" in refused.json()["detail"]
