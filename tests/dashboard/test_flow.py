"""The dashboard in a real browser before a real service."""

import re

import pytest
from playwright.sync_api import expect

from tests.dashboard.seed import HOSTILE, note_seeded_worker

pytestmark = pytest.mark.browser


def row(page, text):
    return page.locator("tbody tr").filter(has_text=text)


def test_signing_in_and_out(watched, site):
    found = watched()
    found.expected.add("401")
    page = found.open("/ui/jobs?status=succeeded")
    page.get_by_label("API key").fill("spq_wrong")
    page.get_by_role("button", name="Sign in").click()
    page.get_by_role("alert").filter(has_text="does not work").wait_for()
    page.get_by_label("API key").fill(site.key())
    page.get_by_role("button", name="Sign in").click()
    page.get_by_role("heading", name="Jobs", level=1).wait_for()
    assert page.url.endswith("/ui/jobs?status=succeeded"), "where one wanted to go"
    cookies = page.context.cookies()
    assert [(one["httpOnly"], one["sameSite"]) for one in cookies] == [(True, "Strict")]
    assert (
        page.evaluate("JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie])")
        == '[{},{},""]'
    )
    page.get_by_role("button", name="Sign out").click()
    page.get_by_role("heading", name="Sign in").wait_for()
    assert "SmolLM2" not in page.content(), "nothing of it is left"
    assert not page.context.cookies()


def test_a_link_signs_in_once(watched, site):
    import httpx2

    headers = {"Authorization": f"Bearer {site.key()}"}
    link = httpx2.post(f"{site.url}/session/codes", headers=headers, json={}).json()
    found = watched()
    page = found.open(link["path"])
    page.get_by_role("heading", name="Jobs", level=1).wait_for()
    assert "code" not in page.url
    other = watched()
    other.expected.add("401")
    again = other.open(link["path"])
    again.get_by_role("alert").filter(has_text="a link works once").wait_for()


def test_the_list_tells_what_happens_to_each_job(signed_in, site):
    page = signed_in().page
    page.get_by_role("row").nth(3).wait_for()
    assert "bob/secret" not in page.content()
    assert "attempt 1 of 3 ended: hub_unavailable" in row(page, "org/stumbles").inner_text()
    assert "model_not_found" in row(page, "does-not-exist").inner_text()
    gate = row(page, "spq-paper").inner_text()
    assert "quality_gate_failed" in gate
    assert "0.510 ±" in gate, "figures of a failed gate are shown"
    better = row(page, "balanced").inner_text()
    assert "better than plain INT8" in better
    assert "46.5%" in better
    running = page.locator("tbody tr").filter(has=page.get_by_text("running", exact=False)).first
    assert "stage 4 of 8: compress: svd" in running.inner_text()
    assert "left" in running.inner_text()
    assert running.get_by_role("progressbar").get_attribute("value") == "0.4"
    assert HOSTILE in page.locator("body").inner_text(), "text is text"


def test_filters_are_in_the_address_and_survive_a_reload(signed_in):
    page = signed_in().page
    page.get_by_role("link", name="failed").click()
    page.wait_for_url(re.compile(r"status=failed$"))
    row(page, "spq-paper").wait_for()
    assert page.locator("tbody tr").count() == 2
    page.get_by_label("Recipe").fill("spq-paper")
    page.get_by_role("button", name="Show").click()
    page.wait_for_url(re.compile("recipe=spq-paper"))
    page.reload()
    row(page, "spq-paper").wait_for()
    assert page.locator("tbody tr").count() == 1
    page.go_back()
    page.wait_for_url(re.compile(r"status=failed$"))
    expect(page.get_by_label("Recipe")).to_have_value("")
    page.get_by_label("Search").fill("nothing like this")
    page.get_by_role("button", name="Show").click()
    page.get_by_text("No job is like that").wait_for()
    page.get_by_role("link", name="Clear filters").click()
    row(page, "balanced").wait_for()


def test_a_job_shows_its_figures_layers_files_and_log(signed_in, site):
    page = signed_in(f"/ui/jobs/{site.jobs['succeeded']}").page
    page.get_by_role("heading", name="SmolLM2-135M-Instruct · small").wait_for()
    body = page.locator("body")
    assert "It is smaller than plain INT8; farther from the source" in body.inner_text()
    table = page.get_by_role("region", name="Figures before and after")
    assert "0.02780 ± 0.00093" in table.inner_text()
    page.get_by_role("combobox", name="Text").select_option("builtin")
    page.get_by_text("builtin, 32 windows").wait_for()
    page.get_by_text("Show layers").click()
    page.get_by_role("img", name="bits of 8 matrices").wait_for()
    page.get_by_role("button", name="Show as a table").click()
    assert "left alone" in page.get_by_role("region", name="Every matrix").inner_text()
    page.get_by_text("Show files").click()
    link = page.get_by_role("link", name="Download everything")
    assert link.get_attribute("href") == f"/jobs/{site.jobs['succeeded']}/archive"
    page.get_by_text("Show log").click()
    page.get_by_role("log").get_by_text("stage 1 of 9: download the model").wait_for()
    page.get_by_text("Show events").click()
    assert "succeeded" in page.get_by_role("region", name="Events").inner_text()


def test_a_failed_gate_shows_what_was_measured_and_what_to_do(signed_in, site):
    page = signed_in(f"/ui/jobs/{site.jobs['gate']}").page
    page.get_by_role("heading", name="Gates").wait_for()
    text = page.locator("body").inner_text()
    assert "KL from the source on wikitext2 is 0.51, the recipe allows 0.05" in text
    assert "Choose a gentler recipe" in text
    assert "✕ no" in text
    assert "0.510 ±" in page.get_by_role("region", name="Figures before and after").inner_text()


def test_labels_are_added_and_removed(signed_in, site):
    page = signed_in(f"/ui/jobs/{site.jobs['better']}").page
    page.get_by_label("New label").fill("run=7")
    page.get_by_role("button", name="Add label").click()
    page.get_by_text("run=7").wait_for()
    page.get_by_role("button", name="remove label run").click()
    page.get_by_text("run=7").wait_for(state="detached")


def test_jobs_are_compared_where_they_can_be(signed_in, site):
    page = signed_in().page
    for text in ("balanced", "spq-paper"):
        row(page, text).get_by_role("checkbox").check()
    page.get_by_role("link", name="Compare", exact=True).last.click()
    page.get_by_role("heading", name="What differs").wait_for()
    chart = page.get_by_role(
        "group", name="KL from the source, nats per token against bytes on disk"
    )
    assert chart.get_by_role("link").count() == 2
    table = page.get_by_role("region", name="Figures").inner_text()
    assert "★ 0.002" in table
    assert "plain INT8" in table
    page.get_by_label("Up").select_option("perplexity")
    page.wait_for_url(re.compile("y=perplexity"))
    assert "stages.0.type" in page.get_by_role("region", name="What differs").inner_text()


def test_a_new_job_is_estimated_submitted_and_made_once(signed_in, site):
    found = signed_in("/ui/new")
    page = found.page
    page.get_by_text("a folder of this service").click()
    page.get_by_text("Artifact").wait_for()
    assert "of the source" in page.locator(".new").inner_text()
    found.expected.add("422")
    page.get_by_text("Changes").click()
    page.get_by_label("JSON laid over the recipe").fill('{"target": {"bytes_ratio": 0.01}}')
    page.get_by_role("alert").wait_for()
    page.get_by_label("JSON laid over the recipe").fill("{")
    page.get_by_text("Changes are not JSON").wait_for()
    assert page.get_by_role("button", name="Submit").is_disabled()
    page.get_by_label("JSON laid over the recipe").fill("")
    page.get_by_label("Labels").fill("made=here")
    page.get_by_text("A part of it, or quantized already").click()
    page.get_by_label("Subfolder").fill("nowhere")
    page.get_by_text("no local model 'tiny-llama/nowhere'").wait_for()
    page.get_by_label("Subfolder").fill("")
    page.get_by_label("widen weights").check()
    page.get_by_role("button", name="Submit").dblclick()
    page.get_by_role("heading", name="tiny-llama · balanced").wait_for()
    assert "waits: " in page.locator("body").inner_text()
    assert sum(url.endswith("/jobs") for url in found.requests) == 1
    page.get_by_role("button", name="Cancel").click()
    page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
    page.get_by_role("button", name="Retry").wait_for()
    page.get_by_role("link", name="Edit and submit again").click()
    page.wait_for_url(re.compile(r"/ui/new\?from="))
    expect(page.get_by_label("Labels")).to_have_value("made=here")
    expect(page.get_by_label("widen weights")).to_be_checked()


def test_changes_come_by_themselves_and_keep_what_is_selected(signed_in, site):
    from tests.dashboard.seed import add, progress, take

    found = signed_in()
    page = found.page
    job = add(site.database, model="org/live")
    row(page, "org/live").wait_for()
    box = row(page, "org/live").get_by_role("checkbox")
    box.check()
    page.evaluate("getSelection().selectAllChildren(document.querySelector('tbody tr code'))")
    chosen = page.evaluate("String(getSelection())")
    attempt = take(site.database, job, "w2")
    attempt.progress("compress", progress(0.6), run_left=60.0)
    row(page, "org/live").get_by_role("progressbar").wait_for()
    attempt.fail({"code": "stalled", "message": "it said nothing"})
    row(page, "org/live").get_by_text("stalled: it said nothing").wait_for()
    assert box.is_checked()
    assert page.evaluate("String(getSelection())") == chosen
    streams = [url for url in found.requests if url.endswith("/events")]
    assert len(streams) == 1, "one stream"


def test_a_key_that_may_only_read_sees_why_it_cannot_change(signed_in, site):
    page = signed_in(f"/ui/jobs/{site.jobs['failed']}", scopes=("jobs:read",)).page
    retry = page.get_by_role("button", name="Retry")
    retry.wait_for()
    assert retry.is_disabled()
    assert "jobs:write" in retry.get_attribute("title")


def test_sweeps_and_workers(signed_in, site):
    import httpx2

    headers = {"Authorization": f"Bearer {site.key()}"}
    body = {
        "model": {"path": "tiny-llama"},
        "sweep": {
            "name": "mine",
            "recipes": ["int8", "gptq-4"],
            "objective": {"minimize": "kl", "subject_to": {"bytes_ratio": {"max": 0.9}}},
        },
    }
    sweep = httpx2.post(f"{site.url}/sweeps", headers=headers, json=body).json()
    found = signed_in("/ui/sweeps")
    page = found.page
    page.get_by_role("link", name="mine").click()
    page.get_by_role("heading", name="mine").wait_for()
    assert "lowest kl with bytes_ratio at most 0.9" in page.locator("body").inner_text()
    page.get_by_role("button", name="pause").click()
    page.get_by_role("dialog").get_by_role("button", name="pause").click()
    page.get_by_role("button", name="resume").wait_for()
    assert sweep["id"] in page.url
    note_seeded_worker(site.database)  # on a slow machine it was heard of long ago by now
    page.get_by_role("link", name="Workers").click()
    page.get_by_role("heading", name="Workers").wait_for()
    assert "2.13.0" in page.get_by_role("region", name="Workers").inner_text()
