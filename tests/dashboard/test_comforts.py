"""What makes it pleasant: keys, named views, cards on phones, a reload after an upgrade, patience that is counted down."""

import re

import httpx2
import pytest


def rows(page):
    page.locator("tbody tr").first.wait_for()
    return page.locator("tbody tr")


def test_keys_go_from_row_to_row_and_can_be_turned_off(signed_in):
    page = signed_in().page
    rows(page)
    page.keyboard.press("j")
    page.keyboard.press("j")
    assert page.evaluate("document.activeElement.closest('tr').rowIndex") == 2
    page.keyboard.press("k")
    assert page.evaluate("document.activeElement.closest('tr').rowIndex") == 1
    page.keyboard.press("/")
    page.keyboard.type("j/k?")
    assert page.get_by_label("Search").input_value() == "j/k?", "in a field they are letters"
    page.locator("h1").click()
    page.keyboard.press("?")
    page.get_by_role("dialog").get_by_text("next row").wait_for()
    page.get_by_role("button", name="Turn them off").click()
    page.keyboard.press("Escape")
    page.reload()
    rows(page)
    page.keyboard.press("j")
    assert page.evaluate("document.activeElement.closest('tr')") is None
    page.evaluate("localStorage.clear()")


def test_a_view_has_a_name_and_can_be_forgotten(signed_in):
    page = signed_in("/ui/jobs?status=failed&sort=kl").page
    rows(page)
    page.get_by_text("Views", exact=True).click()
    page.get_by_label("Name of this view").fill("what broke")
    page.get_by_role("button", name="Save").click()
    page.goto(page.url.split("?")[0])
    rows(page)
    page.get_by_text("Views (1)").click()
    page.get_by_role("link", name="what broke").click()
    page.wait_for_url(re.compile(r"status=failed&sort=kl$"))
    page.get_by_role("button", name="forget the view what broke").click()
    page.get_by_text("Views", exact=True).wait_for()
    page.evaluate("localStorage.setItem('spq-views', '[1, 2')")
    page.reload()
    rows(page)
    page.evaluate("localStorage.clear()")


@pytest.mark.parametrize("width", [390, 320])
def test_on_a_phone_a_job_is_a_card_and_still_a_row(signed_in, width):
    page = signed_in(width=width).page
    row = page.get_by_role("row").filter(has_text="balanced").first
    row.wait_for()
    box = row.bounding_box()
    assert box["width"] <= width
    for name in ("KL", "Perplexity", "Size"):
        cell = row.locator(f"[data-label={name}]").bounding_box()
        assert cell["x"] >= 0, name
        assert cell["x"] + cell["width"] <= width, "nothing is off the screen"
    assert row.get_by_role("rowheader").count() == 1


def test_after_an_upgrade_the_page_says_to_reload(signed_in):
    page = signed_in().page
    rows(page)
    page.route(
        "**/ui/", lambda route: route.fulfill(status=200, headers={"X-Spq-Version": "999.0"})
    )
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    page.get_by_text("spq 999.0").wait_for()
    page.get_by_role("button", name="Reload").wait_for()


def test_it_waits_as_long_as_the_service_asks(signed_in):
    found = signed_in()
    found.expected |= {"503", "Failed to load", "ERR_FAILED"}
    page = found.page
    rows(page)
    asked = []

    def busy(route):
        asked.append(1)
        route.fulfill(
            status=503, headers={"Retry-After": "20"}, content_type="application/problem+json",
            body='{"code": "busy", "detail": "the service has much to do", "status": 503}',
        )  # fmt: skip

    page.route("**/jobs?**", busy)
    page.reload()
    page.get_by_text("the service has much to do").wait_for()
    page.get_by_text(re.compile(r"Trying again in (20|19|18) s")).first.wait_for()
    page.get_by_text(re.compile(r"Trying again in 1[567] s")).first.wait_for()
    assert len(asked) == 1


def test_a_job_shows_its_card_and_what_it_took(signed_in, site):
    page = signed_in(f"/ui/jobs/{site.jobs['succeeded']}").page
    page.get_by_role("heading", name="What it took").wait_for()
    took = page.get_by_role("region", name="What it took").inner_text()
    assert "Artifact" in took
    assert "Memory at its highest" in took
    page.route("**/artifacts/README.md", lambda route: route.fulfill(body="# A card <b>bold</b>"))
    page.get_by_text("Show model card").click()
    page.get_by_text("# A card <b>bold</b>").wait_for()


def test_the_link_signs_in_a_tab_that_is_open_already(watched, site):
    found = watched()
    found.expected.add("401")
    page = found.open("/ui/")
    page.get_by_role("heading", name="Sign in").wait_for()
    headers = {"Authorization": f"Bearer {site.key()}"}
    code = httpx2.post(f"{site.url}/session/codes", headers=headers).json()["code"]
    page.evaluate("code => { location.hash = `code=${code}`; }", code)
    page.get_by_role("heading", name="Jobs", level=1).wait_for()
    assert code not in page.url


def test_part_of_an_id_is_enough(signed_in, site):
    found = signed_in()
    found.expected.add("404")
    page, job = found.page, site.jobs["better"]
    page.goto(f"{found.url}/ui/jobs/{job[-8:]}")
    page.wait_for_url(f"**/ui/jobs/{job}")
    page.goto(f"{found.url}/ui/compare?jobs={job}")
    page.get_by_label("Add a job").fill(site.jobs["succeeded"][-8:])
    page.get_by_role("button", name="Add").click()
    page.wait_for_url(re.compile(site.jobs["succeeded"]))
    page.get_by_role("button", name=f"leave out {job}").click()
    page.wait_for_url(re.compile(rf"jobs={site.jobs['succeeded']}$"))
    page.get_by_label("Add a job").fill("00000000ffff")
    page.get_by_role("button", name="Add").click()
    page.get_by_text("No job has 00000000ffff in its id").wait_for()


def test_a_label_is_searched_for_as_it_is_written_and_every_filter_can_be_taken_back(
    signed_in, site
):
    page = signed_in(f"/ui/jobs?sweep={site.jobs['sweep']}").page
    page.get_by_text("No job is like that").wait_for()
    page.get_by_role("link", name=f"no longer only sweep {site.jobs['sweep']}").click()
    rows(page)
    page.get_by_label("Search").fill("team=search")
    page.get_by_role("button", name="Show").click()
    page.wait_for_url(re.compile("label.team=search"))
    rows(page)
    page.wait_for_function("() => document.querySelectorAll('tbody tr').length === 1")


def test_a_form_made_while_the_service_is_away_fills_itself_when_it_is_back(signed_in):
    found = signed_in()
    found.expected |= {"ERR_FAILED", "Failed to load"}
    page = found.page
    rows(page)
    page.route("**/recipes", lambda route: route.abort())
    page.get_by_role("link", name="New job").click()
    page.get_by_text("Recipes and models are not known yet").wait_for()
    page.unroute("**/recipes")
    page.get_by_text("Recipes and models are not known yet").wait_for(state="detached")
    assert page.get_by_label("Recipe").first.locator("option").count() > 5
