"""Upscale in a real browser: files dropped, the queue, the line between before and after, by pointer and by keys."""

from __future__ import annotations

import pytest
from PIL import Image

from stable_diffusion.record import picture_files
from stable_diffusion.record.parameters import Parameters
from stable_diffusion.training.postcards import painter

from .test_contrast import faint

pytestmark = pytest.mark.browser


def postcard(path, seed=3, side=96):
    card = painter.Postcard("sunset", "green hills", "house", "red", "clear", seed)
    return picture_files.save_picture(painter.paint(card, side), path, Parameters("a red house", seed=seed, steps=2))


def enlarge(page, *files):
    page.get_by_test_id("stFileUploaderDropzoneInput").set_input_files([str(file) for file in files])
    page.get_by_role("button", name="Upscale", exact=True).last.click()


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 390)])
def test_pictures_are_enlarged_and_compared(open_page, tmp_path, outputs, scheme, width):
    files = [postcard(tmp_path / "one.png"), postcard(tmp_path / "two.png", 4)]
    page = open_page("upscale", width=width, ready="Upscaler", scheme=scheme)
    enlarge(page, *files)
    sliders = page.get_by_role("slider", name="How much of the picture before is shown")
    sliders.nth(1).wait_for()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    slider = sliders.first
    slider.focus()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    assert slider.input_value() == "48"
    box = slider.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 20)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 4, box["y"] + 20)
    page.mouse.up()
    assert abs(int(slider.input_value()) - 25) <= 1
    images = page.locator(".compare img").evaluate_all("all => all.map(each => each.naturalWidth)")
    assert images == [384, 96] * 2
    page.get_by_text("one.png · 384 × 384").wait_for()
    assert faint(page) == {}
    made = [Image.open(path).size for path in outputs.rglob("*.png")]
    assert made.count((384, 384)) >= 2
