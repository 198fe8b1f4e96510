import io
import re

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("playwright.sync_api")
from playwright.sync_api import expect

from tests.browser.conftest import PATIENCE
from tests.browser.test_page import finished, generate, quiet_afterwards  # noqa: F401

pytestmark = pytest.mark.browser
expect.set_options(timeout=PATIENCE)
PIXELS = "canvas => Array.from(canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data)"


def lit(page, word):
    return page.get_by_role("img", name=f"The picture, lit where “{word}” acts")


def word(page, name):
    return page.get_by_role("group", name="Words of the prompt").get_by_role("button", name=name, exact=True)


def downloaded(page, name):
    with page.expect_download() as found:
        page.get_by_role("button", name=name).click()
    return found.value.path().read_bytes()


def test_words_light_up_their_places(open_page, request):
    page = open_page()
    page.get_by_text("Advanced", exact=True).click()
    page.wait_for_timeout(500)  # while it unfolds, a click may miss
    page.get_by_text("Show where each word acts").click()
    expect(page.get_by_role("switch", name="Show where each word acts")).to_be_checked()
    page.get_by_label("Seed", exact=True).fill("1")
    page.get_by_label("Seed", exact=True).press("Enter")
    generate(page, request, "a red house on green hills at sunset", steps=4)
    expect(finished(page)).to_be_visible()
    expect(page.get_by_role("tab", name="Where each word acts")).to_be_visible()
    word(page, "hills").hover()
    expect(lit(page, "hills")).to_be_visible()
    below, above = np.split(np.array(lit(page, "hills").evaluate(PIXELS)).reshape(512, 512, 4)[..., 0][::-1], [100])
    assert below.mean() > above.mean() + 40, "hills lie at the bottom"
    lit(page, "hills").hover(position={"x": 100, "y": 100})
    expect(page.get_by_text(re.compile(r"^Here: .+ %"))).to_be_visible()
    page.get_by_role("group", name="Words of the prompt").get_by_role("button", pressed=True).click()
    page.mouse.move(0, 0)
    expect(page.get_by_text("Choose a word to see where it acts.")).to_be_visible()
    word(page, "red").focus()
    page.keyboard.press("ArrowRight")
    expect(lit(page, "house")).to_be_visible()
    page.keyboard.press("Enter")
    expect(word(page, "house")).to_have_attribute("aria-pressed", "true")
    before = lit(page, "house").evaluate(PIXELS)
    level = page.get_by_role("slider", name="Level of the U-Net")
    level.press("End")
    expect(page.get_by_text("Up, 8 × 8").first).to_be_visible()
    page.wait_for_function("([canvas, before]) => canvas.getContext('2d').getImageData(0, 0, 512, 512).data"
                           ".some((value, i) => value !== before[i])",
                           arg=[lit(page, "house").element_handle(), before])  # fmt: skip
    assert Image.open(io.BytesIO(downloaded(page, "Download all words"))).width > 500
    assert "heat_maps" in np.load(io.BytesIO(downloaded(page, "Download the numbers")))
    page.get_by_role("tab", name="Replay the denoising").click()
    expect(page.get_by_role("img", name=re.compile("^The current estimate of the picture, step 4"))).to_be_visible()
