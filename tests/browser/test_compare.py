"""The page Compare in a browser: a grid fills, a click opens a cell, Stop keeps what there is; the rest follows."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect

from .test_contrast import faint

pytestmark = pytest.mark.browser


def fill_in(page, label, text):
    field = page.get_by_label(label, exact=True)
    field.fill(text)
    field.press("Enter")


def cells(page, state):
    return page.get_by_role("button", name=re.compile(rf": {state}$"))


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 390)])
def test_a_grid_fills_opens_stops_and_goes_on(open_page, outputs, scheme, width):
    page = open_page("compare", width=width, ready="Values of the columns", scheme=scheme)
    page.get_by_label("Prompt", exact=True).fill("a red house on green hills")
    fill_in(page, "Values of the columns", "1,2,1000")
    page.get_by_role("combobox", name=re.compile("Rows")).fill("CFG")
    page.get_by_role("option", name="CFG", exact=True).click()
    expect(page.get_by_label("Values of the rows", exact=True)).to_have_value("3-9 [4]")  # the usual ones, put there
    fill_in(page, "Values of the rows", "2,5")
    before = len(list(outputs.rglob("*.png")))
    page.get_by_role("button", name="Paint grid").click()
    cells(page, "finished").nth(1).wait_for()
    cells(page, "painting").wait_for()  # of a thousand steps
    titles = ["Steps: 1", "Steps: 2", "Steps: 1000", "CFG: 2", "CFG: 5"]
    assert page.locator(".grid th").all_inner_texts() == titles
    cells(page, "finished").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    page.get_by_alt_text("The cell with Steps: 2, CFG: 2").wait_for()
    page.get_by_role("button", name="Stop", exact=True).first.click()  # the queue has one, too
    page.get_by_text("Stopped: 2 of 6 cells").wait_for()
    assert cells(page, "finished").count() == 2 and cells(page, "missing").count() == 4
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert faint(page) == {}
    fill_in(page, "Values of the columns", "1,2")
    page.get_by_role("button", name="Paint grid").click()
    page.get_by_text("4 of 4 cells").wait_for()
    assert cells(page, "finished").count() == 4
    assert len(list(outputs.rglob("*.png"))) == before + 4, "the two that were there are not painted again"
