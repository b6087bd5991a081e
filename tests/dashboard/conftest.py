"""A real service in a thread, and a real browser before it."""

import shutil
from collections.abc import Iterator

import pytest

from app.db.keys import SCOPES
from app.db.session import connect
from tests.dashboard.seed import seed
from tests.served import Site, served
from tests.servers import fresh_database

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)


@pytest.fixture(scope="module")
def site(postgres_server, tmp_path_factory, tiny_llama) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    with fresh_database(postgres_server, "spq_template") as database_url:
        database = connect(database_url)
        with served(database_url, folder, tiny_llama.parent) as url:
            yield Site(url, database, seed(database), folder)
        database.dispose()


@pytest.fixture(scope="module")
def browser():
    """Debian's Chromium, as the project's CI installs it. Its driver runs an event loop in this thread: other modules' tests have their own."""
    if CHROMIUM is None:
        pytest.skip("there is no Chromium here (apt-get install chromium)")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    sync_api.expect.set_options(timeout=40_000)
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
        context.set_default_timeout(40_000)  # of a machine with other things to do
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
