"""Every text of every page stands out from what is behind it by 4.5 to 1 at least (WCAG AA), in both themes."""

import contextlib
import re
from pathlib import Path

import pytest

pytest.importorskip("playwright.sync_api")
from playwright.sync_api import TimeoutError as PlaywrightTimeout

MEASURE = Path(__file__).with_name("contrast.js").read_text(encoding="utf-8")
AA = 4.5

pytestmark = pytest.mark.browser


def faint(page):
    """The texts that stand out too little, with their ratios; what is drawn anew or fades in has a moment for it."""
    for _ in range(20):
        page.wait_for_timeout(300)
        measured = page.evaluate(MEASURE)
        assert len(measured) > 20
        found = {words: round(ratio, 2) for ratio, words in measured if ratio < AA}
        if not found:
            break
    return found


def test_the_measure_itself(browser):
    page = browser.new_page()
    page.set_content(
        '<p style="color: #777">a</p><p style="color: #000; opacity: 0.5">b</p>'
        '<div style="background: #4263eb"><p style="color: rgb(255 255 255 / 60%)">c</p></div>'
        "<button disabled>d</button>"
        '<input type="text" value="e" style="background: #000; color: #fff">'
    )
    measured = {words: round(ratio, 2) for ratio, words in page.evaluate(MEASURE)}
    assert measured == {"a": 4.48, "b": 3.98, "c": 2.81, "e": 21.0}
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_stands_out(open_page, scheme):
    page = open_page(scheme=scheme)
    for closed in ("Advanced", "Presets"):
        page.get_by_text(closed, exact=True).click()
    page.get_by_label("Name of a new preset").wait_for()
    option = page.get_by_role("option", name="empty")
    for _ in range(20):  # a list that opens while the page is still drawn closes again
        page.get_by_label("LoRA", exact=True).press("ArrowDown")
        with contextlib.suppress(PlaywrightTimeout):
            option.click(timeout=3000)
            break
    page.get_by_label("Strength of empty").first.wait_for(state="attached")
    page.keyboard.press("Escape")
    assert faint(page) == {}
    page.get_by_label("Prompt", exact=True).fill("a (red:1.4) house, [clouds::0.5]")
    page.get_by_role("button", name="Generate").click()
    page.get_by_role("alert").filter(has_text="empty.safetensors").wait_for()
    assert faint(page) == {}
    page.get_by_role("button", name="Remove empty").click()
    page.get_by_label("Strength of empty").first.wait_for(state="detached")
    page.get_by_role("button", name="Generate").click()
    page.get_by_role("img", name=re.compile("^Finished picture, seed")).wait_for()
    page.get_by_text("Replay the denoising").click()
    page.get_by_role("button", name="Generate").hover()
    page.get_by_role("img", name=re.compile("^The current estimate of the picture, step")).wait_for()
    assert faint(page) == {}
    for name, ready in (
        ("Image to image", "Input picture"),
        ("Morph", "Prompt of station 1"),
        ("Train", "Pictures to learn from, and captions"),
        ("Models", "Search"),
        ("Gallery", "Search in prompts"),
        ("Picture info", "Picture to read"),
        ("How it works", "Lesson"),
    ):
        page.get_by_role("link", name=name).click()
        page.get_by_label(ready, exact=True).first.wait_for(state="attached")
        assert faint(page) == {}, name
        if (chosen := page.get_by_role("radio", checked=True)).count():
            chosen.first.hover()
            assert faint(page) == {}, f"{name}, under the pointer"
