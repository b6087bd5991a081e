"""A real service in a thread, and a real browser before it."""

import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import uvicorn
from pydantic import SecretStr

from app.db.keys import SCOPES, create_key
from app.db.session import Database, connect
from app.main import create_app
from app.settings import ApiSettings
from tests.dashboard.seed import seed
from tests.servers import free_port, fresh_database

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)


@dataclass
class Site:
    url: str
    database: Database
    jobs: dict[str, str]
    keys: dict[str, str] = field(default_factory=dict)

    def key(self, tenant="alice", scopes=SCOPES):
        name = f"{tenant} {scopes}"
        if name not in self.keys:
            with self.database.write() as session:
                _, self.keys[name] = create_key(
                    session, name="browser", tenant=tenant, scopes=scopes, days=None
                )
        return self.keys[name]


@contextmanager
def served(database_url: str, folder: Path, models: Path) -> Iterator[str]:
    """A service without its background threads, at an address."""
    settings = ApiSettings(
        database_url=SecretStr(database_url), broker_url=SecretStr("redis://127.0.0.1:9/0"),
        artifact_dir=folder / "artifacts", model_dirs=str(models), hub_endpoint="http://127.0.0.1:9",
    )  # fmt: skip
    port, app = free_port(), create_app(settings)
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            port=port,
            log_level="error",
            lifespan="off",
            timeout_graceful_shutdown=1,
        )
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if not probe.connect_ex(("127.0.0.1", port)):
                break
        time.sleep(0.05)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(10)
        app.state.database.dispose()


@pytest.fixture(scope="module")
def site(postgres_server, tmp_path_factory, tiny_llama) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    with fresh_database(postgres_server, "spq_template") as database_url:
        database = connect(database_url)
        with served(database_url, folder, tiny_llama.parent) as url:
            yield Site(url, database, seed(database))
        database.dispose()


@pytest.fixture(scope="session")
def browser():
    """Debian's Chromium, as the project's CI installs it."""
    if CHROMIUM is None:
        pytest.skip("there is no Chromium here (apt-get install chromium)")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


class Watched:
    """A page, and everything that went wrong in it."""

    def __init__(self, context, url):
        self.url, self.faults, self.requests, self.expected = url, [], [], set()
        self.page = context.new_page()
        self.page.add_init_script(
            "document.addEventListener('securitypolicyviolation', (e) => console.error('CSP', e.violatedDirective, e.blockedURI))"
        )
        self.page.on("console", lambda told: told.type == "error" and self.faults.append(told.text))
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on(
            "requestfailed",
            lambda request: (
                "ERR_ABORTED" not in (request.failure or "")
                and self.faults.append(f"{request.url} {request.failure}")
            ),
        )
        self.page.on("request", lambda request: self.requests.append(request.url))

    def open(self, path):
        self.page.goto(f"{self.url}{path}")
        return self.page

    def check(self):
        told = [fault for fault in self.faults if not any(word in fault for word in self.expected)]
        assert not told, told


@pytest.fixture
def watched(browser, site, request):
    """Open pages; at the end there was no fault in any."""
    made = []

    def make(**options):
        width = options.pop("width", 1280)
        context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        context.set_default_timeout(10_000)
        found = Watched(context, site.url)
        made.append((context, found))
        return found

    yield make
    for context, found in made:
        context.close()
        found.check()


@pytest.fixture
def signed_in(watched, site):
    """Open pages as somebody."""

    def make(path="/ui/jobs", tenant="alice", scopes=SCOPES, **options):
        found = watched(**options)
        found.expected.add("401")  # the page asks who is signed in: nobody
        page = found.open("/ui/")
        page.get_by_label("API key").fill(site.key(tenant, scopes))
        page.get_by_role("button", name="Sign in").click()
        page.get_by_role("heading", name="Jobs", level=1).wait_for()
        if path != "/ui/jobs":
            found.open(path)
        return found

    return make
