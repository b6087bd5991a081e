"""Clients against the API: what they send is bounded in time and size, and comes back as text only."""

import asyncio
import json
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
import uvicorn
import yaml

from app.http import protocol as http_protocol
from app.http import request_context as framing
from app.http.protocol import BoundedHead
from app.http.request_context import RequestFrame
from app.queue import celery_app
from tests.e2e.conftest import wait_until

ROOT = Path(__file__).resolve().parents[3]
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
    assert time.monotonic() - begun < 20


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
    assert time.monotonic() - begun < 20


@pytest.fixture
def served(api, monkeypatch):
    """The app behind a real uvicorn, as the command line starts it."""
    monkeypatch.setattr(http_protocol, "HEAD_SECONDS", 1.5)
    config = uvicorn.Config(
        api.client.app, http=BoundedHead, port=0, log_level="error", lifespan="off"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_until(lambda: server.started, 10, "uvicorn")
    yield server.servers[0].sockets[0].getsockname()
    server.should_exit = True
    thread.join(10)


def answered(connection):
    """All that comes until the server closes."""
    got = b""
    with suppress(ConnectionResetError):
        while part := connection.recv(65536):
            got += part
    return got


def sent_until_refused(connection, parts):
    count = 0
    with suppress(ConnectionError):
        for part in parts:
            connection.sendall(part)
            count += len(part)
    return count


@pytest.mark.parametrize("where", ["header", "many headers", "URL"])
def test_25_a_head_without_end_is_refused_early(served, where):
    begin, part = {
        "header": (b"GET /livez HTTP/1.1\r\nHost: x\r\nX: ", b"a" * (1 << 20)),
        "many headers": (b"GET /livez HTTP/1.1\r\nHost: x\r\n", b"X-A: b\r\n" * 100_000),
        "URL": (b"GET /", b"a" * (1 << 20)),
    }[where]
    with socket.create_connection(served, timeout=20) as connection:
        connection.sendall(begin)
        sent = sent_until_refused(connection, [part] * 100)
        got = answered(connection)
    assert sent < 60 << 20
    assert not got or got.startswith((b"HTTP/1.1 431 ", b"HTTP/1.1 400 ")), got[:200]
    with socket.create_connection(served, timeout=5) as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert answered(connection).startswith(b"HTTP/1.1 200 ")


def test_25_a_head_somewhat_too_large_is_told_so(served):
    with socket.create_connection(served, timeout=5) as connection:
        connection.sendall(
            b"GET /livez HTTP/1.1\r\nHost: x\r\nX: " + b"a" * (http_protocol.MAX_HEAD_BYTES + 1)
        )
        got = answered(connection)
    assert got.startswith(b"HTTP/1.1 431 Request Header Fields Too Large\r\n")
    assert json.loads(got.split(b"\r\n\r\n")[1])["code"] == "headers_too_large"


def test_25_a_head_that_comes_in_drops_is_given_up(served):
    """From a fresh connection, and behind a request that was answered."""
    whole = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
    for before in (b"", whole):
        with socket.create_connection(served, timeout=10) as connection:
            connection.sendall(before)
            begun = time.monotonic()
            with suppress(ConnectionError):
                for byte in whole * 10:
                    connection.sendall(bytes([byte]))
                    time.sleep(0.2)
                    if time.monotonic() - begun > 3:
                        break
            got = answered(connection)
        assert got.count(b"HTTP/1.1 200 ") == (1 if before else 0)
        assert b"HTTP/1.1 408 Request Timeout" in got


def test_25_honest_heads_and_slow_answers_are_left_alone(served, api):
    """Large headers below the limit, several requests on a connection, a long poll beyond the head's time."""
    job = api.submit()["id"]
    key = api.headers()["Authorization"]
    head = f"GET /jobs/{job} HTTP/1.1\r\nHost: x\r\nAuthorization: {key}\r\n".encode()
    with socket.create_connection(served, timeout=10) as connection:
        for extra in (
            b"X: " + b"a" * 60_000 + b"\r\n",
            b"Prefer: wait=3\r\n",
            b"Connection: close\r\n",
        ):
            connection.sendall(head + extra + b"\r\n")
            if b"close" not in extra:
                assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
        assert answered(connection).startswith(b"HTTP/1.1 200 ")


def test_25_trailers_without_end_close_the_connection(served):
    """Behind a request that was refused for its chunks, on the same connection."""
    with socket.create_connection(served, timeout=10) as connection:
        head = b"POST /jobs HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        connection.sendall(head)
        assert connection.recv(65536).startswith(b"HTTP/1.1 411 ")
        sent = sent_until_refused(connection, [b"0\r\n", *[b"X-T: y\r\n" * 10_000] * 200])
    assert sent < 8 << 20, "of 16 MB"


def test_25_no_second_answer_stands_inside_of_another(served, api):
    """A head that is not finished while an earlier request waits for its answer."""
    job = api.submit()["id"]
    key = api.headers()["Authorization"]
    head = f"GET /jobs/{job} HTTP/1.1\r\nHost: x\r\nAuthorization: {key}\r\nPrefer: wait=4\r\n\r\n"
    with socket.create_connection(served, timeout=15) as connection:
        connection.sendall(head.encode() + b"GET /li")
        time.sleep(2.5)
        connection.sendall(b"vez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        got = answered(connection)
    assert got.count(b"HTTP/1.1 200 ") == 2
    assert b"408" not in got


def test_25_empty_lines_keep_no_connection(served):
    with socket.create_connection(served, timeout=15) as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
        connection.sendall(b"\r\n")
        assert b"408" in answered(connection)
