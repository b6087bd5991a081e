"""What pages show when something is not as it should be, on every size of screen, light and dark; and what nobody may do."""

import re
from pathlib import Path

import axe_playwright_python
import httpx2
import pytest

from app.db.jobs import JobRepository
from app.db.models import Job
from app.db.session import now
from tests.dashboard.seed import FILES, add, fill, result, take
from tests.marks import every

pytestmark = pytest.mark.browser
AXE = (Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text(encoding="utf-8")
TAGS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
PAGES = ("jobs", "succeeded", "gate", "running", "compare", "new", "sweeps", "sweep", "workers")


def address(site, name):
    if name == "sweep":
        return f"/ui/sweeps/{site.jobs[name]}"
    if name in site.jobs:
        return f"/ui/jobs/{site.jobs[name]}"
    if name == "compare":
        return (
            f"/ui/compare?jobs={site.jobs['better']},{site.jobs['succeeded']},{site.jobs['failed']}"
        )
    return f"/ui/{name}"


def violations(page):
    page.evaluate(AXE)
    found = page.evaluate(
        "async (tags) => (await axe.run(document, {runOnly: tags})).violations", TAGS
    )
    return [(one["id"], one["nodes"][0]["html"][:200]) for one in found]


def settle(page):
    page.locator("h1").first.wait_for()
    page.wait_for_function("() => !document.querySelector('[aria-busy=true]')")
    for summary in page.locator("summary").all():
        summary.click()
    page.wait_for_function("() => !document.querySelector('[aria-busy=true]')")


@pytest.mark.parametrize(
    ("width", "scheme"),
    every(
        3,
        [
            (1280, "light"),
            (390, "light"),
            (320, "light"),
            (320, "dark"),
            (390, "dark"),
            (1280, "dark"),
        ],
    ),
)
def test_no_page_has_a_barrier_or_scrolls_sideways(signed_in, watched, site, scheme, width):
    found = signed_in(width=width, color_scheme=scheme)
    found.expected.add("404")  # the seeded job's files are names only, and its model card is opened
    for name in PAGES:
        page = found.open(address(site, name))
        settle(page)
        assert violations(page) == [], name
        wide = page.evaluate(
            "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"
        )
        assert wide[0] <= wide[1], name
    outside = watched(width=width, color_scheme=scheme)
    outside.expected.add("401")
    page = outside.open("/ui/")
    page.get_by_role("heading", name="Sign in").wait_for()
    assert violations(page) == []


def test_what_is_not_there_is_said_to_be_so(signed_in, site):
    found = signed_in()
    found.expected.add("404")
    page = found.open(f"/ui/jobs/{site.jobs['foreign']}")
    page.get_by_role("alert").filter(has_text="there is no job").wait_for()
    assert "Request req_" in page.locator("main").inner_text()
    page = found.open("/ui/nonsense")
    page.get_by_role("heading", name="Nothing here").wait_for()
    page = found.open(f"/ui/jobs/{site.jobs['unmeasured']}")
    page.get_by_text("No figures: measuring failed: too little memory").wait_for()


def test_what_takes_long_shows_that_it_does(signed_in):
    page = signed_in().page
    held = []
    page.route("**/jobs?**", lambda route: held.append(route))  # noqa: PLW0108 - Playwright asks for a function
    page.reload()
    page.locator("main [aria-busy=true]").wait_for()
    page.get_by_text("Loading …").first.wait_for()
    for route in held:
        route.continue_()
    page.unroute("**/jobs?**")
    page.locator("tbody tr").first.wait_for()
    page.wait_for_function("() => !document.querySelector('[aria-busy=true]')")


def test_what_is_gone_says_how_it_went(signed_in, site):
    found = signed_in()
    found.expected.add("404")
    expired = add(site.database)
    take(site.database, expired).succeed(
        result=result(75_000_000, 0.03), layers=[], metrics=[], files=FILES
    )
    with site.database.write() as session:
        session.get(Job, expired).artifact_expired_at = now(session)
    page = found.open(f"/ui/jobs/{expired}")
    page.get_by_text("The artifact was removed").wait_for()
    assert page.get_by_role("region", name="Figures before and after").is_visible(), "figures stay"
    with site.database.write() as session:
        JobRepository(session, "alice").remove(expired)
    page.reload()
    page.get_by_role("heading", name="No such job").wait_for()


def test_an_error_of_the_page_itself_is_not_put_on_the_service(signed_in, site):
    found = signed_in()
    page = found.page
    page.locator("tbody tr").first.wait_for()
    page.evaluate(
        "() => { Response.prototype.json = () => { throw new TypeError('a fault of ours'); }; }"
    )
    add(site.database, model="org/later")
    page.get_by_text("An error of this page: TypeError: a fault of ours").wait_for()
    assert "does not answer" not in page.locator("main").inner_text()
    assert page.locator("tbody tr").count() > 3, "what was there stays"


def test_a_service_that_is_away_or_behind_a_broken_proxy_is_told_apart(signed_in, site):
    found = signed_in()
    found.expected |= {"ERR_FAILED", "502", "Failed to load", "ERR_INTERNET_DISCONNECTED"}
    page = found.page
    page.locator("tbody tr").first.wait_for()
    page.route("**/jobs?**", lambda route: route.abort())
    page.route("**/events", lambda route: route.abort())
    page.reload()
    page.get_by_text("The service does not answer.").first.wait_for()
    page.unroute("**/jobs?**")
    page.route(
        "**/jobs?**",
        lambda route: route.fulfill(
            status=502, content_type="text/html", body="<h1>Bad gateway</h1>"
        ),
    )
    page.get_by_text("Something between here and the service answered (502)").first.wait_for()
    page.unroute("**/jobs?**")
    page.locator("tbody tr").first.wait_for()


def test_what_is_being_typed_survives_an_update(signed_in, site):
    page = signed_in().page
    page.locator("tbody tr").first.wait_for()
    page.get_by_label("Search").fill("half a wo")
    add(site.database, model="org/arrives-meanwhile")
    page.get_by_text("org/arrives-meanwhile").first.wait_for()
    assert page.get_by_label("Search").input_value() == "half a wo"


def test_quick_presses_leave_one_poller_behind(signed_in):
    found = signed_in()
    found.expected |= {"ERR_FAILED", "Failed to load"}
    page = found.page
    page.locator("tbody tr").first.wait_for()
    page.route("**/events", lambda route: route.abort())  # so that it polls
    page.reload()
    page.locator("tbody tr").first.wait_for()
    for at in range(8):
        page.get_by_label("Search").fill(f"no such thing {at}")
        page.get_by_role("button", name="Show").click()
        page.wait_for_url(f"**thing+{at}&**")
    page.get_by_text("No job is like that (search no such thing 7)").wait_for()
    before = len(found.requests)
    page.wait_for_timeout(8000)
    lists = [url for url in found.requests[before:] if "/jobs?" in url and "/ui/" not in url]
    assert 1 <= len(lists) <= 4, "every 2 s at the soonest, and less often while nothing changes"


def test_stale_data_is_marked_and_goes_on(signed_in, site):
    found = signed_in()
    found.expected |= {"ERR_FAILED", "Failed to load"}
    page = found.page
    page.locator("tbody tr").first.wait_for()
    page.route("**/jobs?**", lambda route: route.abort())
    add(site.database, model="org/newer")
    page.get_by_text("What is shown is from").wait_for()
    assert page.locator("tbody tr").count() > 5, "what was there stays"
    page.unroute("**/jobs?**")
    page.get_by_text("org/newer").wait_for()
    page.get_by_text("What is shown is from").wait_for(state="detached")


def test_a_session_that_ends_takes_everything_off_the_page(signed_in, site):
    from sqlalchemy import delete

    from app.db.browser_sessions import BrowserSession

    found = signed_in()
    page = found.page
    page.locator("tbody tr").first.wait_for()
    with site.database.write() as session:
        session.execute(delete(BrowserSession))
    page.evaluate(
        "document.querySelector(\"a[href*='status=failed']\")?.click()"
    )  # or the page noticed before
    page.get_by_role("heading", name="Sign in").wait_for()
    assert "SmolLM2" not in page.content()


def test_two_tenants_see_their_own(signed_in, site):
    page = signed_in(tenant="bob").page
    page.get_by_text("bob/secret").wait_for()
    assert page.locator("tbody tr").count() == 1
    assert "SmolLM2" not in page.content()


def test_a_tenant_without_jobs_is_told_how_to_begin(signed_in):
    page = signed_in(tenant="carol").page
    page.get_by_text("No jobs yet.").wait_for()
    assert "spq jobs submit" in page.locator("main").inner_text()


def test_ten_thousand_jobs_cost_no_more_than_fifty(signed_in, site):
    fill(site.database, 10_000)
    found = signed_in()
    page = found.page
    page.locator("tbody tr").nth(49).wait_for()
    assert page.locator("tbody tr").count() == 50
    assert "10,0" in page.get_by_role("group", name="Status").inner_text()
    page.get_by_role("link", name="Next page").click()
    page.wait_for_url(re.compile("after="))
    page.locator("tbody tr").nth(49).wait_for()


@pytest.fixture(scope="module")
def signed(site):
    """A program with a browser's cookie."""
    with httpx2.Client(base_url=site.url) as made:
        assert made.post("/session", json={"key": site.key()}, headers=OWN).status_code == 204
        yield made


OWN = {"X-Spq-Csrf": "1", "Sec-Fetch-Site": "same-origin", "Content-Type": "application/json"}


@pytest.mark.parametrize("method", ["POST", "PATCH", "DELETE"])
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"X-Spq-Csrf": None}, "X-Spq-Csrf"),
        ({"Content-Type": "text/plain"}, "Content-Type"),
        ({"Content-Type": "application/x-www-form-urlencoded"}, "Content-Type"),
        ({"Sec-Fetch-Site": "cross-site"}, "cross-site"),
        ({"Sec-Fetch-Site": "same-site"}, "same-site"),
        ({"Sec-Fetch-Site": "none"}, "none"),
        ({"Sec-Fetch-Site": None}, "Origin"),
        ({"Sec-Fetch-Site": None, "Origin": "http://evil.example"}, "Origin"),
        ({"Sec-Fetch-Site": None, "Origin": "null"}, "Origin"),
    ],
)
def test_a_change_must_come_from_a_page_of_the_service(site, signed, method, changes, words):
    headers = {name: value for name, value in {**OWN, **changes}.items() if value is not None}
    job = site.jobs["canceled"]
    path = {"POST": f"/jobs/{job}/retry", "PATCH": f"/jobs/{job}", "DELETE": f"/jobs/{job}"}[method]
    refused = signed.request(method, path, content=b'{"labels": {"a": "b"}}', headers=headers)
    assert refused.status_code == 403
    assert refused.json()["code"] == "cross_site_request"
    assert words in refused.json()["detail"]
    assert signed.get(f"/jobs/{job}").json()["labels"] == {}


def test_a_page_of_the_service_and_a_key_may_change(site, signed):
    job = site.jobs["canceled"]
    for headers in (OWN, {**OWN, "Sec-Fetch-Site": "", "Origin": site.url}):
        sent = {name: value for name, value in headers.items() if value}
        assert signed.patch(f"/jobs/{job}", json={"labels": {}}, headers=sent).status_code == 200
    bearer = {"Authorization": f"Bearer {site.key()}"}
    assert (
        httpx2.patch(f"{site.url}/jobs/{job}", json={"labels": {}}, headers=bearer).status_code
        == 200
    )


def test_a_session_makes_no_link_and_odd_requests_are_refused(site, signed):
    assert signed.post("/session/codes", json={}, headers=OWN).status_code == 401
    odd = {**OWN, "Origin": "http://["}
    del odd["Sec-Fetch-Site"]
    assert (
        signed.patch(f"/jobs/{site.jobs['canceled']}", json={"labels": {}}, headers=odd).status_code
        == 403
    )
    surrogate = httpx2.post(f"{site.url}/session", content=b'{"key": "\\ud800"}', headers=OWN)
    assert surrogate.status_code == 422


def test_a_login_cannot_be_forged_or_tried_without_end(site):
    with httpx2.Client(base_url=site.url) as stranger:
        assert stranger.post("/session", json={"key": site.key()}).status_code == 403
        answers = {
            stranger.post("/session", json={"key": "spq_no"}, headers=OWN).status_code
            for _ in range(40)
        }
    assert answers <= {401, 429}
    assert 429 in answers
