"""The page Morph in a browser: frames arrive, the film plays, what was stopped stays."""

import re

import pytest

pytest.importorskip("playwright.sync_api")
from playwright.sync_api import expect

from tests.browser.conftest import PATIENCE
from tests.browser.test_page import set_slider

pytestmark = pytest.mark.browser
expect.set_options(timeout=PATIENCE)
PROMPT = "Prompt of station 1"


def frames(page, state):
    return page.get_by_role("group", name="Frames", exact=True).get_by_role("button", name=re.compile(f": {state}$"))


def ask(page, n_frames, steps):
    set_slider(page, "Steps", steps)
    field = page.get_by_role("spinbutton", name="Frames from station to station")
    field.fill(str(n_frames))
    field.press("Enter")
    page.get_by_text(re.compile(f"^{n_frames} frames, ")).wait_for()
    page.get_by_role("button", name="Paint frames").click()


def test_a_morph_is_painted_played_stopped_and_opened(open_page):
    page = open_page("morph", ready=PROMPT)
    ask(page, 3, 2)
    expect(frames(page, "finished")).to_have_count(3)
    shown = page.get_by_role("img", name=re.compile(r"^Frame \d of 3: "))
    expect(shown).to_have_attribute("alt", re.compile("^Frame 1 of 3"))
    first = shown.get_attribute("src")
    page.get_by_role("slider", name="Frame", exact=True).press(" ")
    expect(shown).to_have_attribute("alt", re.compile("^Frame 3 of 3"))
    expect(page.get_by_role("button", name="Play", exact=True)).to_be_visible()
    assert shown.get_attribute("src") != first
    page.get_by_role("slider", name="Frame", exact=True).press("Home")
    assert shown.get_attribute("src") == first
    with page.expect_download() as found:
        page.get_by_role("button", name="Download GIF").click()
    assert found.value.path().read_bytes()[:3] == b"GIF"
    page.get_by_role("button", name=re.compile("^Frame 2 of 3: ")).click()
    expect(page.get_by_role("button", name="Reuse all settings")).to_be_visible()
    page.get_by_role("button", name="Close").click()
    ask(page, 40, 20)
    expect(page.get_by_role("button", name=re.compile("^Frame 40 of 40: "))).to_be_visible()  # no longer those before
    expect(frames(page, "finished").nth(1)).to_be_visible()
    page.get_by_role("button", name="Stop", exact=True).first.click()  # the queue has one, too
    expect(page.get_by_text(re.compile("^Stopped: ")).first).to_be_visible()
    assert 2 <= frames(page, "finished").count() < 40
    page.set_viewport_size({"width": 390, "height": 800})
    expect(page.get_by_role("button", name="Play", exact=True)).to_be_enabled()
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
