"""From signing in to signing out, as one goes; by mouse, and by the keyboard alone."""

import re

import pytest

from tests.dashboard.seed import LAYERS, progress, result, take, whole_course

pytestmark = pytest.mark.browser
LABELS = "made=on-the-way"


class Mouse:
    """What a hand does."""

    def __init__(self, page):
        self.page = page

    def press(self, role, name, within="body"):
        self.page.locator(within).get_by_role(role, name=name).first.click()

    def write(self, label, text):
        self.page.get_by_label(label).fill(text)

    def pick(self, label):
        self.page.get_by_label(label).first.check()

    def open(self, words):
        self.page.locator("summary", has_text=words).click()


class Keyboard:
    """The same, without one: Tab, Enter, Space and letters."""

    def __init__(self, page):
        self.page = page

    def _reach(self, element):
        """Go on by Tab until an element has the focus, around the page once."""
        element.wait_for()
        for _ in range(150):
            if element.evaluate("one => one === document.activeElement"):
                return
            self.page.keyboard.press("Tab")
        raise AssertionError(f"{element} cannot be reached")

    def press(self, role, name, within="body"):
        self._reach(self.page.locator(within).get_by_role(role, name=name).first)
        self.page.keyboard.press("Enter")

    def write(self, label, text):
        self._reach(self.page.get_by_label(label))
        self.page.keyboard.press("Control+A")
        self.page.keyboard.type(text)

    def open(self, words):
        self._reach(self.page.locator("summary", has_text=words))
        self.page.keyboard.press("Enter")

    def pick(self, label):
        """A radio of a group has the focus of the group: arrows choose."""
        element = self.page.get_by_label(label).first
        if element.get_attribute("type") == "radio":
            self._reach(self.page.locator(f"input[name={element.get_attribute('name')}]:checked"))
            self.page.keyboard.press("ArrowDown")
            assert element.is_checked()
        else:
            self._reach(element)
            self.page.keyboard.press("Space")


@pytest.mark.parametrize("hand", [Mouse, Keyboard])
def test_a_job_from_the_form_to_its_files(watched, site, tmp_path, hand):
    found = watched(accept_downloads=True)
    found.expected |= {
        "401",
        "404",
    }  # nobody is signed in at first; files of seeded jobs are names only
    page = found.open("/ui/")
    does = hand(page)
    does.write("API key", site.key())
    does.press("button", "Sign in")
    page.get_by_role("heading", name="Jobs", level=1).wait_for()
    does.press("link", "New job")
    page.get_by_role("heading", name="New job").wait_for()
    does.pick("a folder of this service")
    does.write("Labels", LABELS)
    page.get_by_text("of the source").first.wait_for()  # the estimate
    does.press("button", "Submit")
    page.get_by_role("heading", name="tiny-llama · balanced").wait_for()
    job = page.url.rsplit("/", 1)[1]
    attempt = take(site.database, job)
    attempt.progress("compress", progress(0.4), run_left=900.0)
    page.get_by_role("progressbar", name="progress of the job").wait_for()
    files = site.keep(job, {"config.json": b"{}", "model.safetensors": bytes(1000)})
    attempt.progress("throughput", whole_course())
    attempt.succeed(result=result(75_000_000, 0.0278), layers=LAYERS, metrics=[], files=files)
    page.get_by_role("region", name="Figures before and after").wait_for()
    does.press("link", "Compare", within="main")
    page.get_by_role("region", name="Figures").wait_for()
    page.go_back()
    page.get_by_role("region", name="Figures before and after").wait_for()
    does.open("Show files")
    with page.expect_download() as download:
        does.press("link", re.compile("Download everything"))
    saved = tmp_path / "artifact.tar"
    download.value.save_as(saved)
    assert b"config.json" in saved.read_bytes()
    does.press("button", "Sign out")
    page.get_by_role("heading", name="Sign in").wait_for()
    assert job not in page.content()
