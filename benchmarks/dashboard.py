"""What the list of jobs costs a browser: 10,000 jobs, 20 of them running, and each of these changing all the time.

    python benchmarks/dashboard.py

A real service on Postgres, and Debian's Chromium before it. Milliseconds of scripting and of layout (Chromium's own counters) for
the first page and for each further update; bytes of JavaScript; requests that were on their way at one time. As a peer the table of
the same rows as a page that a server writes: no script, parsed and laid out once. Results go into results/dashboard.json.
"""

import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import CDPSession, Page, sync_playwright

from app.db.migrate import upgrade
from app.db.session import connect
from app.http.pages import page_files
from tests.dashboard.conftest import CHROMIUM
from tests.dashboard.seed import add, fill, progress, seed, take
from tests.served import Site, served
from tests.servers import postgres

RESULTS = Path(__file__).parent / "results" / "dashboard.json"
JOBS, RUNNING, UPDATES = 10_000, 20, 15
COUNTERS = {
    "ScriptDuration": "scripting",
    "LayoutDuration": "layout",
    "RecalcStyleDuration": "style",
}


@contextmanager
def full_site() -> Iterator[tuple[Site, list[Any]]]:
    """A service with many jobs, and the attempts of those that run."""
    with tempfile.TemporaryDirectory() as root, postgres() as server:
        folder = Path(root)
        url = f"{server}/postgres"
        upgrade(url)
        database = connect(url)
        (folder / "models").mkdir()
        with served(url, folder, folder / "models") as address:
            site = Site(address, database, seed(database))
            fill(database, JOBS)
            attempts = [take(database, add(database), f"w{at}") for at in range(RUNNING)]
            for attempt in attempts:
                attempt.progress("compress", progress(0.1), run_left=900.0)
            yield site, attempts
        database.dispose()


def spent(session: CDPSession) -> dict[str, float]:
    """Milliseconds of the page's main thread so far."""
    found = {one["name"]: one["value"] for one in session.send("Performance.getMetrics")["metrics"]}
    return {told: found[name] * 1000 for name, told in COUNTERS.items()}


def difference(after: dict[str, float], before: dict[str, float]) -> dict[str, float]:
    return {name: after[name] - before[name] for name in after}


class Traffic:
    """How many requests of a page are on their way at one time; its stream is not counted."""

    def __init__(self, page: Page) -> None:
        self.most, self._open = 0, set[Any]()
        page.on("request", self._begins)
        for event in ("requestfinished", "requestfailed"):
            page.on(event, self._open.discard)

    def _begins(self, request: Any) -> None:
        if "/jobs" in request.url and "/ui" not in request.url:
            self._open.add(request)
            self.most = max(self.most, len(self._open))


def measured(page: Page, site: Site, attempts: list[Any]) -> dict[str, Any]:
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable")
    page.goto(f"{site.url}/ui/")
    page.get_by_label("API key").fill(site.key())
    page.get_by_role("button", name="Sign in").click()
    page.locator("tbody tr").nth(49).wait_for()
    traffic = Traffic(page)
    page.reload()
    page.locator("tbody tr").nth(49).wait_for()
    first = spent(session)  # counters begin again with a new document
    page.wait_for_timeout(4000)
    updates = []
    for at in range(UPDATES):
        before = spent(session)
        share = 0.2 + 0.5 * at / UPDATES
        for attempt in attempts:
            attempt.progress("compress", progress(share, done=at), run_left=900.0)
        page.wait_for_timeout(3000)
        updates.append(difference(spent(session), before))
    return {
        "first_page_ms": first,
        "update_ms": {
            name: {"median": statistics.median(one[name] for one in updates), "highest": max(one[name] for one in updates)}
            for name in first
        },
        "rows": page.locator("tbody tr").count(), "requests_at_a_time": traffic.most, "table": page.locator("main").inner_html(),
    }  # fmt: skip


def written_by_a_server(page: Page, table: str) -> dict[str, float]:
    """The same table without any script."""
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable")
    page.goto("about:blank")
    before = spent(session)
    began = time.monotonic()
    page.set_content(f"<!doctype html><main>{table}</main>")
    page.locator("tbody tr").nth(49).wait_for()
    return difference(spent(session), before) | {"wall": (time.monotonic() - began) * 1000}


def main() -> None:
    with full_site() as (site, attempts), sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        found = measured(page, site, attempts)
        peer = written_by_a_server(browser.new_page(), found.pop("table"))
        version = browser.version
    scripts = [file for name, file in page_files().items() if name.endswith(".js")]
    told = {
        "chromium": version, "jobs": JOBS, "running": RUNNING, **found, "same_table_without_script_ms": peer,
        "javascript_bytes": sum(len(one.content) for one in scripts),
        "javascript_bytes_gzip": sum(len(one.compressed) for one in scripts),
    }  # fmt: skip
    print(json.dumps(told, indent=1))
    RESULTS.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
