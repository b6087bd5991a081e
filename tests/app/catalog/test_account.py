"""Who asks, and the machines and models that are there."""

import json

from app.db.quotas import set_limits
from app.db.workers import note_presence
from tests.app.jobs.test_router import start


def get(api, path, tenant="alice"):
    answer = api.client.get(path, headers=api.headers(tenant))
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_whoever_asks_learns_who_they_are_and_what_is_left(api):
    with api.database.write() as session:
        set_limits(session, "alice", {"max_active_jobs": 5})
    api.submit()
    found = get(api, "/me")
    assert (found["tenant"], found["scopes"]) == ("alice", ["jobs:read", "jobs:write"])
    assert found["limits"]["max_active_jobs"] == {"limit": 5, "used": 1}
    assert found["limits"]["max_jobs_per_day"] == {"limit": None, "used": 1}
    assert get(api, "/me", "bob")["limits"]["max_active_jobs"] == {"limit": None, "used": 0}
    key = api.headers()["Authorization"].split("_")[1]
    assert key not in json.dumps(found)


def test_a_worker_shows_its_job_to_whom_it_belongs(api):
    note_presence(api.database, "w1", {"device": "cpu", "threads": 2})
    note_presence(api.database, "w2", {"device": "cpu", "threads": 2})
    mine = api.submit()
    api.submit()
    start(api, mine["id"], "w1")
    own = get(api, "/workers")
    assert own["queued"] == 1
    first, second = own["data"]
    assert (first["state"], first["job"]["id"], first["job"]["stage"]) == (
        "busy",
        mine["id"],
        "starting",
    )
    assert (second["state"], second["job"], second["facts"]["threads"]) == ("idle", None, 2)
    others = get(api, "/workers", "bob")["data"][0]
    assert others["state"] == "busy"
    assert others["job"] == {"id": None, "model": None, "stage": None, "since": None}


def test_local_models_are_named_with_their_size_and_a_damaged_one_is_no_end(api, tiny_llama):
    broken = tiny_llama.parent / "broken"
    broken.mkdir(exist_ok=True)
    (broken / "config.json").write_text("{")
    try:
        found = {one["name"]: one for one in get(api, "/models")["data"]}
        assert found["broken"]["model_type"] is None
    finally:
        (broken / "config.json").unlink()
        broken.rmdir()
    assert found[tiny_llama.name]["model_type"] == "llama"
    weights = sum(file.stat().st_size for file in tiny_llama.glob("*.safetensors"))
    assert found[tiny_llama.name]["bytes"] == weights
