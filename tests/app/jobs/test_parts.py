"""A job's log: whole, from its end, and as a stream."""

from sqlalchemy import delete

from app.db.models import JobEvent
from tests.app.jobs.test_router import problem, start


def test_a_stream_of_events_that_are_no_longer_kept_is_over(api):
    job = api.submit()
    api.client.post(f"/jobs/{job['id']}/cancel", headers=api.headers())
    with api.database.write() as session:
        session.execute(delete(JobEvent).where(JobEvent.job_id == job["id"]))
    streaming = api.headers() | {"Accept": "text/event-stream"}
    assert api.client.get(f"/jobs/{job['id']}/events", headers=streaming).status_code == 204


def test_a_log_is_had_whole_from_its_end_and_as_a_stream(api):
    job = api.submit()
    attempt = start(api, job["id"])
    attempt.log([f"line {number}" for number in range(5)])
    url = f"/jobs/{job['id']}/logs"
    page = api.client.get(url, params={"tail": 2}, headers=api.headers()).json()
    assert [one["text"] for one in page["data"]] == ["line 3", "line 4"]
    all_of_it = api.client.get(url, params={"tail": 50}, headers=api.headers()).json()
    assert len(all_of_it["data"]) == 5
    plain = api.client.get(url, headers=api.headers() | {"Accept": "text/plain"})
    assert plain.headers["content-type"].startswith("text/plain")
    lines = plain.text.splitlines()
    assert [line.split("] ")[1] for line in lines] == [f"line {number}" for number in range(5)]
    attempt.fail({"code": "internal", "message": "no"})
    streaming = api.headers() | {"Accept": "text/event-stream"}
    with api.client.stream("GET", url, params={"tail": 3}, headers=streaming) as stream:
        text = "".join(stream.iter_text())
    assert text.count("event: log") == 3
    assert "line 2" in text
    assert "line 1" not in text
    last = page["next_after"]
    ended = api.client.get(url, headers=streaming | {"Last-Event-ID": str(last)})
    assert ended.status_code == 204
    problem(
        api.client.get(url, headers=api.headers("bob") | {"Accept": "text/plain"}),
        404,
        "job_not_found",
    )
