"""Pictures of every page, light and dark, wide and narrow, into docs/pictures: `python -m tests.dashboard.pictures`."""

import tempfile
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from app.db.jobs import JobRepository
from app.db.migrate import upgrade
from app.db.session import connect
from tests.dashboard.conftest import CHROMIUM
from tests.dashboard.seed import seed
from tests.served import Site, served

PICTURES = Path(__file__).resolve().parents[2] / "docs/pictures"
WIDTHS, HEIGHT = (1280, 390), 820


def addresses(jobs: dict[str, str]) -> dict[str, str]:
    compared = ",".join(jobs[name] for name in ("better", "succeeded", "gate"))
    return {
        "jobs": "/ui/jobs", "job": f"/ui/jobs/{jobs['better']}", "compare": f"/ui/compare?jobs={compared}", "new": "/ui/new",
        "sweeps": "/ui/sweeps", "sweep": f"/ui/sweeps/{jobs['sweep']}", "workers": "/ui/workers",
    }  # fmt: skip


def take(page: Page, site: Site, ending: str) -> None:
    page.goto(f"{site.url}/ui/")
    page.get_by_label("API key").wait_for()
    page.screenshot(path=PICTURES / f"login-{ending}.png")
    page.get_by_label("API key").fill(site.key())
    page.get_by_role("button", name="Sign in").click()
    page.locator("tbody tr").first.wait_for()
    for name, path in addresses(site.jobs).items():
        page.goto(f"{site.url}{path}")
        page.locator("h1").first.wait_for()
        page.wait_for_function("() => !document.querySelector('[aria-busy=true]')")
        page.wait_for_timeout(500)
        page.screenshot(path=PICTURES / f"{name}-{ending}.png")


def main() -> None:
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root)
        url = f"sqlite:///{folder / 'pictures.db'}"
        upgrade(url)
        database = connect(url)
        jobs = seed(database)
        with database.write() as session:  # strings that attack are for tests
            own = JobRepository(session, "alice")
            own.cancel(jobs["hostile"])
            own.remove(jobs["hostile"])
        with served(url, folder, folder) as address, sync_playwright() as playwright:
            site = Site(address, database, jobs)
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            for scheme in ("light", "dark"):
                for width in WIDTHS:
                    view = {"width": width, "height": HEIGHT}
                    context = browser.new_context(viewport=view, color_scheme=scheme)
                    take(context.new_page(), site, f"{width}-{scheme}")
                    context.close()
        database.dispose()


if __name__ == "__main__":
    main()
