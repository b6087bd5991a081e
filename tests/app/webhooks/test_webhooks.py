"""Webhooks against a real endpoint on this machine, and against addresses they must not reach."""

import base64
import hashlib
import hmac
import http.server
import ipaddress
import json
import socket
import threading
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import pytest
from cryptography.fernet import Fernet
from pydantic import SecretStr
from sqlalchemy import select, update

from app.db import webhooks
from app.db.attempts import Attempt, claim
from app.db.models import WebhookDelivery, WebhookSecret
from app.db.session import now
from app.db.webhooks import Due, claim_due
from app.domain.errors import UnsafeWebhookError
from app.secrets import make_sealer
from app.webhooks import targets
from app.webhooks.sender import WebhookSender
from app.webhooks.targets import parse_target, send
from tests.e2e.conftest import wait_until

LOOPBACK = (ipaddress.ip_network("127.0.0.0/8"),)


class Endpoint(http.server.ThreadingHTTPServer):
    """Keeps what it gets, and answers with the next of `answers`, or 200."""

    def __init__(self):
        self.got, self.answers, self.headers = [], [], {}
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}/hook?x=1"


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.got.append((dict(self.headers), body))
        self.send_response(self.server.answers.pop(0) if self.server.answers else 200)
        for name, value in self.server.headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def endpoint():
    server = Endpoint()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def sender(api):
    return WebhookSender(api.database, api.client.app.state.sealer, LOOPBACK, 1.0)


def finish(api, job_id):
    attempt = Attempt(api.database, claim(api.database, job_id, "w", 60))
    attempt.fail({"code": "internal", "message": "x", "retryable": False})


def deliveries(api, tenant="alice", **query):
    answer = api.client.get("/webhook_deliveries", params=query, headers=api.headers(tenant))
    assert answer.status_code == 200, answer.text
    return answer.json()["data"]


def make_due(api):
    with api.database.write() as session:
        session.execute(
            update(WebhookDelivery)
            .where(WebhookDelivery.next_try_at.is_not(None))
            .values(next_try_at=datetime(2020, 1, 1, tzinfo=UTC))
        )


def verify(secret, headers, body):
    key = base64.b64decode(secret.removeprefix("whsec_"))
    text = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    expected = base64.b64encode(hmac.new(key, text, hashlib.sha256).digest()).decode()
    return f"v1,{expected}" in headers["webhook-signature"].split(" ")


def test_the_end_of_a_job_is_told_once_and_signed(api, endpoint, sender):
    secret = api.client.get("/webhooks/secret", headers=api.headers()).json()["secret"]
    job = api.submit(webhook={"url": endpoint.url}, labels={"team": "a"})
    assert sender.send_due() == 0, "nobody asked to hear that it is queued"
    finish(api, job["id"])
    assert sender.send_due() == 1
    assert sender.send_due() == 0
    [(headers, body)] = endpoint.got
    assert verify(secret, headers, body)
    assert not verify("whsec_" + base64.b64encode(b"x" * 32).decode(), headers, body)
    message = json.loads(body)
    assert message["type"] == "job.failed"
    assert message["data"]["id"] == job["id"]
    assert message["data"]["labels"] == {"team": "a"}
    [listed] = deliveries(api, job_id=job["id"])
    assert listed["delivered_at"]
    assert listed["last_status"] == 200
    assert deliveries(api, "bob") == []


def test_all_events_that_were_asked_for(api, endpoint, sender):
    hook = {"url": endpoint.url, "events": ["job.started", "job.canceled"]}
    running, queued = api.submit(webhook=hook), api.submit(webhook=hook)
    claim(api.database, running["id"], "w", 60)
    api.client.post(f"/jobs/{queued['id']}/cancel", headers=api.headers())
    sender.send_due()
    told = {json.loads(body)["type"]: json.loads(body)["data"]["id"] for _, body in endpoint.got}
    assert told == {"job.started": running["id"], "job.canceled": queued["id"]}


def test_refused_messages_come_again_with_the_same_id_until_they_are_given_up(
    api, endpoint, sender
):
    job = api.submit(webhook={"url": endpoint.url})
    finish(api, job["id"])
    endpoint.answers = [500, 302, 429] + [503] * 20
    for _ in range(3):
        assert sender.send_due() == 1
        assert sender.send_due() == 0, "not at once again"
        make_due(api)
    assert len({headers["webhook-id"] for headers, _ in endpoint.got}) == 1
    assert len({body for _, body in endpoint.got}) == 1
    for _ in range(7):
        make_due(api)
        sender.send_due()
    make_due(api)
    assert sender.send_due() == 0, "ten tries are enough"
    [parked] = deliveries(api)
    assert parked["tries"] == 10
    assert parked["next_try_at"] is None
    assert "503" in parked["last_error"]
    endpoint.answers = []
    url = f"/webhook_deliveries/{parked['id']}/resend"
    assert api.client.post(url, headers=api.headers("bob")).status_code == 404
    assert api.client.post(url, headers=api.headers()).status_code == 202
    sender.send_due()
    assert deliveries(api)[0]["delivered_at"]


def test_an_endpoint_may_ask_to_wait_or_to_be_left_alone(api, endpoint, sender):
    job = api.submit(webhook={"url": endpoint.url})
    finish(api, job["id"])
    endpoint.answers, endpoint.headers = [503], {"Retry-After": "1000"}
    sender.send_due()
    [waiting] = deliveries(api)
    pause = datetime.fromisoformat(waiting["next_try_at"]) - datetime.now(UTC)
    assert 900 < pause.total_seconds() < 1100
    make_due(api)
    endpoint.answers = [410]
    sender.send_due()
    assert deliveries(api)[0]["next_try_at"] is None


def test_a_dead_sender_loses_nothing(api, endpoint, sender):
    job = api.submit(webhook={"url": endpoint.url})
    finish(api, job["id"])
    assert len(claim_due(api.database, 8)) == 1  # and the process dies here
    assert sender.send_due() == 0
    make_due(api)
    assert sender.send_due() == 1
    assert deliveries(api)[0]["delivered_at"]


def test_secrets_can_be_changed_and_are_sealed_in_the_database(api, endpoint, sender):
    old = api.client.get("/webhooks/secret", headers=api.headers()).json()["secret"]
    assert api.client.get("/webhooks/secret", headers=api.headers()).json()["secret"] == old
    new = api.client.post("/webhooks/secret/rotate", headers=api.headers()).json()["secret"]
    assert new != old
    assert api.client.get("/webhooks/secret", headers=api.headers("bob")).json()["secret"] != new
    job = api.submit(webhook={"url": endpoint.url})
    finish(api, job["id"])
    sender.send_due()
    headers, body = endpoint.got[0]
    assert verify(new, headers, body)
    assert verify(old, headers, body), "for a day the old one counts too"
    with api.database.read() as session:
        row = session.get(WebhookSecret, "alice")
    assert old not in row.previous
    assert new not in row.sealed
    reading = api.headers(scopes=("jobs:read",))
    assert api.client.get("/webhooks/secret", headers=reading).status_code == 403


def test_sealing_keys_can_be_changed():
    first, second = Fernet.generate_key().decode(), Fernet.generate_key().decode()
    sealed = make_sealer(SecretStr(first)).seal("text")
    assert make_sealer(SecretStr(f"{second},{first}")).open(sealed) == "text"
    with pytest.raises(ValueError, match="SPQ_SECRET_KEYS"):
        make_sealer(SecretStr("short"))


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/", "https://example.com:22/", "https://user:pw@example.com/", "ftp://example.com/",
        "https://127.0.0.1/", "https://[::1]/", "https://0.0.0.0/", "https://169.254.169.254/latest",
        "https://[fd00:ec2::254]/", "https://10.1.2.3/", "https://100.64.0.1/", "https://[::ffff:127.0.0.1]/",
        "https://[64:ff9b::7f00:1]/", "https://[2002:7f00:1::]/", "https://224.0.0.1/", "https://",
        "https://exa mple.com/", "https://example.com:99999/", "https://example.com/\u00e9", "nonsense",
        "https://example.com/" + "x" * 3000,
    ],
)  # fmt: skip
def test_addresses_that_are_not_public_are_refused(url):
    with pytest.raises(UnsafeWebhookError):
        parse_target(url, ())


def test_the_api_refuses_them_at_submission(api):
    body = {"model": {"repo_id": "a/b"}, "webhook": {"url": "https://10.0.0.1/"}}
    answer = api.client.post("/jobs", json=body, headers=api.headers())
    assert answer.status_code == 422
    assert answer.json()["code"] == "unsafe_webhook"
    assert api.client.get("/jobs", headers=api.headers()).json()["data"] == []


@pytest.mark.parametrize("host", ["2130706433", "0177.0.0.1", "0x7f.1", "localhost"])
def test_names_are_judged_by_every_address_they_have(host, endpoint):
    port = endpoint.server_address[1]
    with pytest.raises((UnsafeWebhookError, OSError)):
        send(targets.Target("https", host, port, "/"), b"", {}, ())
    assert endpoint.got == []


def test_a_name_that_changes_its_address_is_connected_to_where_it_was_checked(monkeypatch):
    answers = [["93.184.216.34", "127.0.0.1"], ["93.184.216.34"]]
    connected = []

    def resolve(*_, **__):
        return [(socket.AF_INET, 1, 6, "", (one, 443)) for one in answers.pop(0)]

    def connect(address, *_):
        connected.append(address[0])
        raise ConnectionRefusedError

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr(socket, "create_connection", connect)
    target = parse_target("https://rebinding.example/", ())
    with pytest.raises(UnsafeWebhookError):
        send(target, b"", {}, ())
    with pytest.raises(ConnectionRefusedError):
        send(target, b"", {}, ())
    assert connected == ["93.184.216.34"], "one lookup, and no second one when connecting"
    assert answers == []


def test_an_endpoint_that_drips_is_cut_off(monkeypatch):
    monkeypatch.setattr(targets, "TOTAL_SECONDS", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        stop = threading.Event()

        def drip():
            connection, _ = server.accept()
            with connection, suppress(OSError):
                connection.recv(10_000)
                while not stop.wait(0.1):
                    connection.send(b"H")

        dripping = threading.Thread(target=drip)
        dripping.start()
        target = parse_target(f"http://127.0.0.1:{server.getsockname()[1]}/", LOOPBACK)
        begun = datetime.now(UTC)
        with pytest.raises((OSError, http.client.HTTPException)):
            send(target, b"{}", {}, LOOPBACK)
        stop.set()
        dripping.join()
    assert (datetime.now(UTC) - begun).total_seconds() < 5


def test_every_ending_of_a_job_that_has_a_webhook_leaves_a_message(api):
    job = api.submit(webhook={"url": "https://example.com/"})
    with api.database.read() as session:
        assert session.scalars(select(WebhookDelivery)).all() == []
    api.client.post(f"/jobs/{job['id']}/cancel", headers=api.headers())
    [message] = deliveries(api)
    assert message["type"] == "job.canceled"


@pytest.mark.parametrize(
    "answer", [b"\x00\x01 nonsense\r\n\r\n", b"HTTP/1.1 503 x\r\nRetry-After: \xb2\r\n\r\n", b""]
)
def test_whatever_an_endpoint_answers_is_a_failed_try(api, endpoint, sender, answer):
    with socket.create_server(("127.0.0.1", 0)) as server:

        def reply():
            connection, _ = server.accept()
            with connection:
                connection.recv(10_000)
                connection.sendall(answer)

        thread = threading.Thread(target=reply)
        thread.start()
        job = api.submit(webhook={"url": f"http://127.0.0.1:{server.getsockname()[1]}/"})
        finish(api, job["id"])
        assert sender.send_due() == 1
        thread.join()
    [listed] = deliveries(api)
    assert listed["tries"] == 1
    assert listed["delivered_at"] is None
    pause = datetime.fromisoformat(listed["next_try_at"]) - datetime.now(UTC)
    assert pause.total_seconds() < 10, "the next try is the second one's, not the dead sender's"


def test_a_name_that_is_no_name_is_a_failed_try(api, endpoint, sender):
    job = api.submit(webhook={"url": "https://" + "a" * 64 + ".com/"})
    finish(api, job["id"])
    assert sender.send_due() == 1
    assert deliveries(api)[0]["last_error"]


def test_a_handshake_that_never_ends_is_cut_off(monkeypatch):
    monkeypatch.setattr(targets, "TOTAL_SECONDS", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        target = parse_target(f"https://127.0.0.1:{server.getsockname()[1]}/", LOOPBACK)
        begun = datetime.now(UTC)
        with pytest.raises(OSError):  # noqa: PT011 - of several kinds
            send(target, b"{}", {}, LOOPBACK)
    assert (datetime.now(UTC) - begun).total_seconds() < 5


def test_an_endpoint_with_many_messages_leaves_room_for_others(api, endpoint):
    for _ in range(12):
        finish(api, api.submit(webhook={"url": endpoint.url})["id"])
    finish(api, api.submit("bob", webhook={"url": endpoint.url})["id"])
    first = claim_due(api.database, 8)
    assert sum(one.tenant == "alice" for one in first) == 2
    assert sum(one.tenant == "bob" for one in first) == 1


def test_a_tenant_with_many_silent_endpoints_leaves_room_for_others(
    api, endpoint, sender, monkeypatch
):
    """Other URLs, other hosts: it is the tenant that has few places, and only as long as they are taken."""
    monkeypatch.setattr(targets, "TOTAL_SECONDS", 2.5)
    with socket.create_server(("", 0), backlog=500) as silent:
        port = silent.getsockname()[1]
        urls = [f"http://127.0.{number % 100}.1:{port}/{number}" for number in range(450)]
        with api.database.write() as session:
            moment = now(session) - timedelta(minutes=1)
            session.add_all(
                WebhookDelivery(
                    id=f"msg_{number}", tenant="alice", job_id="job_" + "0" * 32, url=url, type="job.failed",
                    payload={}, created_at=moment, next_try_at=moment, tries=0,
                )
                for number, url in enumerate(urls)
            )  # fmt: skip
        for tenant in ("alice", "bob"):
            api.client.get("/webhooks/secret", headers=api.headers(tenant))
        sender.pause_seconds = 0.2
        sender.start()
        try:
            wait_until(
                lambda: len(sender._on_their_way) == 4, 10, "the silent ones have their places"
            )
            finish(api, api.submit("bob", webhook={"url": endpoint.url})["id"])
            wait_until(lambda: endpoint.got, 5, "another tenant's message")
        finally:
            sender.stop()


def test_tenants_that_fill_all_places_do_not_keep_them(api):
    """With messages that all run out of time, whoever has none on its way is next."""
    with api.database.write() as session:
        moment = now(session) - timedelta(minutes=1)
        for tenant, count in (("alice", 60), ("carol", 60), ("bob", 1)):
            session.add_all(
                WebhookDelivery(
                    id=f"msg_{tenant}{number}", tenant=tenant, job_id="job_" + "0" * 32,
                    url=f"https://{tenant}{number}.example/", type="job.failed", payload={}, created_at=moment,
                    next_try_at=moment + timedelta(seconds=30 * (tenant == "bob")), tries=0,
                )
                for number in range(count)
            )  # fmt: skip
    flying = [
        Due(id=f"{tenant}{number}", tenant=tenant, url=f"https://{number}/", payload={}, tries=1)
        for tenant in ("alice", "carol") for number in range(4)
    ]  # fmt: skip
    assert claim_due(api.database, 0, flying) == []
    [next_one] = claim_due(api.database, 1, flying[1:])
    assert next_one.tenant == "bob"
    empty = claim_due(api.database, 8)
    assert len(empty) < 8, "the last places are for tenants without one"
    assert {one.tenant for one in empty} == {"alice", "carol"}


def test_a_late_outcome_does_not_undo_a_newer_one(api, endpoint):
    finish(api, api.submit(webhook={"url": endpoint.url})["id"])
    [slow] = claim_due(api.database, 8)
    make_due(api)
    [quick] = claim_due(api.database, 8)
    webhooks.delivered(api.database, quick, 200)
    webhooks.failed(api.database, slow, status=500, error="x", retry_after=0, jitter=1)
    assert deliveries(api)[0]["delivered_at"]
    assert deliveries(api)[0]["next_try_at"] is None
