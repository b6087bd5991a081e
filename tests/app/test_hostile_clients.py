"""Clients against the API: what they send is bounded in time and size, and comes back as text only."""

import asyncio
import json
import time
from pathlib import Path

import pytest
import yaml

from app import framing
from app.framing import RequestFrame
from app.queue import celery_app

ROOT = Path(__file__).resolve().parents[2]
TERMINAL = "\x1b]0;owned\x07\x1b[2J\r\nSet-Cookie: a=b"
MARKUP = "<script>alert(1)</script>"


@pytest.fixture
def database_url(sqlite_url):
    """What is tested comes before the database."""
    return sqlite_url


def post(api, body):
    return api.client.post("/jobs", json=body, headers=api.headers())


def job(**changes):
    return {"model": {"repo_id": "org/tiny"}, "recipe": "int8"} | changes


def test_21_text_of_clients_does_not_become_headers_or_markup(api):
    answer = api.client.get("/jobs", headers=api.headers() | {"X-Request-Id": "a b<c>"})
    assert answer.headers["x-request-id"].startswith("req_")
    made = post(api, job(labels={"team": MARKUP}))
    assert made.headers["content-type"] == "application/json"
    assert made.headers["x-content-type-options"] == "nosniff"
    page = api.client.get("/", headers={"accept": "text/html"})
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "unsafe-inline" not in page.headers["content-security-policy"]
    for text in (TERMINAL, "x" * 100_000):
        for body in (job(labels={"team": text}), job(model={"repo_id": text}), job(recipe=text)):
            refused = post(api, body)
            assert refused.status_code in (413, 422), refused.text
            assert "\x1b" not in json.dumps(refused.json(), ensure_ascii=False)
            assert len(refused.text) < 5000
            assert "set-cookie" not in refused.headers


@pytest.mark.parametrize(
    "recipe",
    [
        {"stages": [{"type": "quantize"}] * 10_000},
        {"stages": [{"type": "svd", "variance": 1e308}]},
        {"stages": [{"type": "svd", "rank": -1}]},
        {"stages": [{"type": "quantize", "bits": 10**100}]},
        {"stages": [{"type": "quantize", "group": 7}]},
        {"extends": "int8", "calibration": {"samples": 10**9}},
        {"extends": "int8", "calibration": {"length": 10**9}},
        {"extends": "int8", "gates": {"max_perplexity_ratio": -1}},
        {"extends": "a" * 9000 + "!"},
        {"extends": {"extends": "int8"}},
    ],
)
def test_22_absurd_recipes_are_refused_at_once(api, recipe):
    begun = time.monotonic()
    answer = post(api, job(recipe=recipe))
    assert answer.status_code in (413, 422), answer.text
    assert len(answer.text) < 20_000
    assert time.monotonic() - begun < 1


def test_24_the_broker_is_inside_and_messages_are_json_only():
    settings = celery_app("redis://127.0.0.1:9/0", 3600).conf
    assert settings.accept_content == ["json"]
    assert settings.task_serializer == "json"
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    for name in ("postgres", "redis"):
        assert "ports" not in compose["services"][name]
        assert compose["services"][name]["networks"] == ["inside"]
    assert compose["networks"]["inside"] == {"internal": True}
    assert "--requirepass" in compose["services"]["redis"]["command"]
    for name in ("api", "worker"):
        for port in compose["services"][name].get("ports", []):
            assert port.startswith("127.0.0.1:")


def test_25_large_bodies_are_refused_unread(api):
    headers = api.headers() | {"content-length": str(100 << 20), "content-type": "application/json"}
    answer = api.client.post("/jobs", content=b"{}", headers=headers)
    assert answer.status_code == 413


def test_25_a_body_that_does_not_come_is_given_up(monkeypatch):
    monkeypatch.setattr(framing, "BODY_SECONDS", 0.2)
    sent = []

    async def reached(*_):
        raise AssertionError("the application was called before the body was there")

    async def slow():
        await asyncio.sleep(0.15)
        return {"type": "http.request", "body": b"x", "more_body": True}

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http", "method": "POST", "path": "/jobs", "raw_path": b"/jobs", "query_string": b"",
        "headers": [(b"content-length", b"100")], "state": {},
    }  # fmt: skip
    begun = time.monotonic()
    asyncio.run(RequestFrame(reached, 1000)(scope, slow, send))
    assert sent[0]["status"] == 408
    assert time.monotonic() - begun < 1
