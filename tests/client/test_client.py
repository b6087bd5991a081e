"""The Python client before a real service, and before one that stumbles."""

import asyncio
import http.server
import json
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import pytest

import spq_client
from app.db.session import connect
from spq_client import AsyncClient, Client
from spq_client.calls import Calls, Pause, answered
from spq_client.files import Target
from spq_client.streams import Parser
from tests.dashboard.seed import add, progress, seed, take
from tests.served import Site, served
from tests.servers import fresh_database


@pytest.fixture(scope="module")
def site(postgres_server, tmp_path_factory, tiny_llama):
    folder = tmp_path_factory.mktemp("client")
    with fresh_database(postgres_server, "spq_template") as database_url:
        database = connect(database_url)
        with served(database_url, folder, tiny_llama.parent) as url:
            yield Site(url, database, seed(database), folder)
        database.dispose()


@pytest.fixture
def spq(site):
    with Client(site.url, site.key(), patience=5) as client:
        yield client


def test_importing_it_takes_neither_torch_nor_the_service():
    program = "import sys, spq_client; print(sorted({'torch', 'fastapi', 'sqlalchemy', 'pydantic', 'app'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_what_of_a_repository_is_the_model_is_said_with_it(spq):
    with pytest.raises(spq_client.InvalidRequestError, match="inner"):
        spq.submit("tiny-llama", "int8", local=True, subfolder="inner")
    job = spq.submit("tiny-llama", "int8", local=True, allow_requantize=True)
    assert spq.job(job["id"])["request"]["model"]["allow_requantize"] is True


def test_a_job_is_submitted_once_found_again_and_canceled(spq):
    asked = {
        "local": True,
        "evaluation": {"perplexity": ["builtin"], "limit": 2},
        "labels": {"run": "c"},
    }
    job = spq.submit("tiny-llama", "int8", **asked, idempotency_key="mine")
    assert spq.submit("tiny-llama", "int8", **asked, idempotency_key="mine")["id"] == job["id"]
    assert [one["id"] for one in spq.jobs(labels={"run": "c"})] == [job["id"]]
    assert spq.estimate("tiny-llama", "int8", local=True)["artifact_bytes"]["expected"] > 0
    assert spq.label(job["id"], run=None, team="x")["labels"] == {"team": "x"}
    assert spq.cancel(job["id"])["status"] == "canceled"
    again = spq.retry(job["id"])
    assert again["retry_of"] == job["id"]
    spq.delete(job["id"])
    with pytest.raises(spq_client.NotFoundError) as gone:
        spq.job(job["id"])
    assert (gone.value.code, gone.value.status) == ("job_not_found", 404)
    assert gone.value.request_id
    spq.cancel(again["id"])


def test_lists_come_page_by_page(spq):
    assert len({row["id"] for row in spq.jobs(limit=2)}) >= 9
    assert {row["status"] for row in spq.jobs(status=["failed", "canceled"])} == {
        "failed",
        "canceled",
    }


@pytest.mark.parametrize(
    ("recipe", "kind", "code"),
    [
        ("nope", spq_client.InvalidRequestError, "invalid_recipe"),
        ({"stages": 1}, spq_client.InvalidRequestError, "invalid_recipe"),
    ],
)
def test_refusals_have_their_code(spq, recipe, kind, code):
    with pytest.raises(kind) as refused:
        spq.submit("tiny-llama", recipe, local=True)
    assert refused.value.code == code


def test_a_wrong_key_and_a_missing_one_are_told(site, monkeypatch, tmp_path):
    with Client(site.url, "spq_wrong") as stranger, pytest.raises(spq_client.AuthenticationError):
        stranger.me()
    monkeypatch.delenv("SPQ_API_KEY", raising=False)
    monkeypatch.setenv("SPQ_KEY_FILE", str(tmp_path / "none"))
    with pytest.raises(spq_client.AuthenticationError, match="spq login"):
        Client(site.url)


def test_waiting_returns_a_good_job_and_raises_a_bad_one(spq, site):
    assert spq.wait(site.jobs["better"])["verdict"]["word"] == "better"
    with pytest.raises(spq_client.JobFailedError) as failed:
        spq.wait(site.jobs["gate"])
    assert failed.value.code == "quality_gate_failed"
    assert failed.value.job["result"]["rows"], "figures of a failed gate are there"
    assert spq.wait(site.jobs["canceled"], check=False)["status"] == "canceled"
    with pytest.raises(spq_client.WaitTimeoutError):
        spq.wait(site.jobs["running"], timeout=0.1)


def test_events_come_as_they_happen_and_end(spq, site):
    job = add(site.database, model="org/streamed")
    attempt = take(site.database, job)
    found = []

    def play(event):
        found.append(event)
        if event.type == "status" and event.data["data"]["status"] == "running":
            attempt.progress("compress", progress(0.5))
            attempt.fail({"code": "internal", "message": "no"})

    for event in spq.events(job):
        play(event)
    assert [one.id for one in found] == [str(number) for number in range(1, len(found) + 1)]
    assert found[-1].data["data"]["status"] == "failed"


def artifact(site, contents):
    job = add(site.database, model="org/files")
    attempt = take(site.database, job)
    attempt.succeed(result={"rows": []}, layers=[], metrics=[], files=site.keep(job, contents))
    return job


CONTENTS = {"config.json": b"{}", "empty": b"", "sub/model.safetensors": bytes(range(256)) * 4096}


def test_a_download_goes_on_where_it_broke_off(spq, site, tmp_path):
    job = artifact(site, CONTENTS)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "model.safetensors.part").write_bytes(
        CONTENTS["sub/model.safetensors"][:1000]
    )
    spq.download(job, tmp_path)
    assert {name: (tmp_path / name).read_bytes() for name in CONTENTS} == CONTENTS
    assert not list(tmp_path.rglob("*.part"))
    before = (tmp_path / "config.json").stat().st_mtime_ns
    spq.download(job, tmp_path)
    assert (tmp_path / "config.json").stat().st_mtime_ns == before, "what is right is left alone"
    (tmp_path / "sub" / "model.safetensors").unlink()
    (tmp_path / "sub" / "model.safetensors.part").write_bytes(b"something else")
    with pytest.raises(spq_client.DamagedDownloadError):
        spq.download(job, tmp_path)
    spq.download(job, tmp_path)
    assert (tmp_path / "sub" / "model.safetensors").read_bytes() == CONTENTS[
        "sub/model.safetensors"
    ]


@pytest.mark.parametrize("path", ["../x", "/etc/x", "a/../../x", ""])
def test_no_file_leaves_the_folder(tmp_path, path):
    with pytest.raises(spq_client.DamagedDownloadError):
        Target(tmp_path, path, "0" * 64, 1)


def test_a_sweep_is_submitted_and_canceled(spq, site):
    sweep = spq.submit_sweep("tiny-llama", {"recipes": ["int8", "gptq-4"]}, local=True)
    assert spq.sweep(sweep["id"])["counts"] == {"waiting": 2}
    assert spq.cancel_sweep(sweep["id"])["status"] == "canceling"


def test_the_async_client_does_the_same(site, spq):
    async def course():
        async with AsyncClient(site.url, site.key(), patience=5) as other:
            first, second = await asyncio.gather(
                other.wait(site.jobs["better"]), other.wait(site.jobs["gate"], check=False)
            )
            job = await other.submit("tiny-llama", "int8", local=True, labels={"kind": "async"})
            found = [row["id"] async for row in other.jobs(labels={"kind": "async"})]
            await other.cancel(job["id"])
            await other.label(job["id"], kind=None)
            assert [row async for row in other.jobs(labels={"kind": "async"})] == []
            lines = [line async for line in other.logs(site.jobs["better"])]
            assert lines == list(spq.logs(site.jobs["better"]))
            kinds = [event.data["data"]["status"] async for event in other.events(job["id"])]
            return first["status"], second["status"], found == [job["id"]], kinds

    assert asyncio.run(course()) == ("succeeded", "failed", True, ["queued", "canceled"])


def test_the_async_client_fetches_artifacts_and_only_what_is_wanted(site, tmp_path):
    job = artifact(site, CONTENTS)

    async def course():
        async with AsyncClient(site.url, site.key(), patience=5) as spq:
            await spq.download(job, tmp_path, only=lambda path: not path.endswith(".safetensors"))

    asyncio.run(course())
    kept = {str(one.relative_to(tmp_path)) for one in tmp_path.rglob("*") if one.is_file()}
    assert kept == {"config.json", "empty"}


def test_both_clients_can_do_the_same():
    names = [{name for name in vars(one) if name[0] != "_"} for one in (Client, AsyncClient)]
    assert names[0] == names[1]


@contextmanager
def stumbling(answers):
    """A service that gives prepared answers, one after the other; None hangs up."""
    seen = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers.get("content-length") or 0))
            seen.append(dict(self.headers))
            prepared = answers.pop(0)
            if prepared is None:
                self.connection.close()
                return
            status, document, headers = prepared
            body = document if isinstance(document, bytes) else json.dumps(document).encode()
            self.send_response(status)
            self.send_header(
                "Content-Type", "text/html" if isinstance(document, bytes) else "application/json"
            )
            self.send_header("Content-Length", str(len(body)))
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        do_DELETE = do_GET = do_POST  # noqa: N815 - as the base class has it

        def log_message(self, *_words):
            """Quiet."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", seen
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def _quick(monkeypatch):
    monkeypatch.setattr("spq_client.calls.FIRST_PAUSE", 0.01)


@pytest.mark.usefixtures("_quick")
def test_a_submission_survives_stumbles_and_is_one():
    made = (202, {"id": "job_1"}, {})
    with (
        stumbling(
            [
                None,
                (502, b"<h1>Bad gateway</h1>", {}),
                (503, {"code": "database_unavailable", "detail": "away"}, {}),
                made,
            ]
        ) as (url, seen),
        Client(url, "spq_x", patience=10) as spq,
    ):
        assert spq.submit("a/b")["id"] == "job_1"
    keys = {one["Idempotency-Key"] for one in seen}
    assert len(seen) == 4
    assert len(keys) == 1


@pytest.mark.usefixtures("_quick")
def test_a_deletion_whose_answer_was_lost_is_done():
    with (
        stumbling([None, (404, {"code": "job_not_found", "detail": "gone"}, {})]) as (url, _),
        Client(url, "spq_x", patience=5) as spq,
    ):
        spq.delete("job_1")
    with (
        stumbling([(404, {"code": "job_not_found", "detail": "gone"}, {})]) as (url, _),
        Client(url, "spq_x", patience=5) as spq,
        pytest.raises(spq_client.NotFoundError),
    ):
        spq.delete("job_1")


@pytest.mark.usefixtures("_quick")
def test_patience_ends(site):
    with (
        Client("http://127.0.0.1:9", "spq_x", patience=0.05) as spq,
        pytest.raises(spq_client.UnavailableError, match="does not answer"),
    ):
        spq.me()
    busy = [(429, {"code": "rate_limited", "detail": "slow down"}, {"Retry-After": "3600"})]
    with (
        stumbling(busy) as (url, _),
        Client(url, "spq_x", patience=1) as spq,
        pytest.raises(spq_client.RateLimitedError),
    ):
        spq.me()


@pytest.mark.usefixtures("_quick")
def test_a_download_that_always_breaks_off_ends_with_patience(tmp_path):
    files = {"data": [{"path": "a", "bytes": 10, "sha256": "0" * 64, "url": "/a"}]}
    broken = [(200, files, {}), *[None] * 200]
    with (
        stumbling(broken) as (url, seen),
        Client(url, "spq_x", patience=0.3) as spq,
        pytest.raises(spq_client.UnavailableError),
    ):
        spq.download("job_1", tmp_path)
    assert len(seen) < 40, "with growing pauses"


@pytest.mark.usefixtures("_quick")
def test_a_stream_outlives_a_restart():
    event = b'id: 1\nevent: status\ndata: {"data": {"status": "queued"}}\n\n'
    answers = [
        (503, {"code": "database_unavailable", "detail": "away"}, {}),
        (200, event, {}),
        None,
        (204, {}, {}),
    ]
    with stumbling(answers) as (url, seen), Client(url, "spq_x", patience=5) as spq:
        assert [one.id for one in spq.events("job_1")] == ["1"]
    assert seen[-1]["Last-Event-ID"] == "1"


def test_waiting_ends_in_time_while_the_service_is_away():
    with Client("http://127.0.0.1:9", "spq_x", patience=60) as spq:
        began = time.monotonic()
        with pytest.raises(spq_client.WaitTimeoutError):
            spq.wait("job_1", timeout=1)
        assert time.monotonic() - began < 30


def test_a_refusal_is_not_asked_again():
    with (
        stumbling([(422, {"code": "invalid_recipe", "detail": "no"}, {})]) as (url, seen),
        Client(url, "spq_x") as spq,
        pytest.raises(spq_client.InvalidRequestError),
    ):
        spq.submit("a/b")
    assert len(seen) == 1


def test_pauses_grow_and_heed_what_the_service_asks_for():
    call = answered(next(Calls(60).get("/me")), 1e9)
    pauses = []
    next(call)
    for _ in range(8):
        step = call.send(spq_client.calls.Answer(503, {}))
        assert isinstance(step, Pause)
        pauses.append(step.seconds)
        next(call)
    assert pauses[0] < 1
    assert pauses[-1] > 8
    assert call.send(spq_client.calls.Answer(503, {"retry-after": "40"})).seconds == 40


def test_streams_are_parsed_as_the_standard_has_it():
    parser = Parser()
    lines = [
        "retry: 3000",
        ": ping",
        "",
        "id: 7",
        "event: log",
        'data: {"a":',
        "data:  1}",
        "",
        "data: 2",
        "",
    ]
    found = [event for line in lines for event in parser.take(line)]
    assert [(one.id, one.type, one.data) for one in found] == [
        ("7", "log", {"a": 1}),
        ("7", "message", 2),
    ]
