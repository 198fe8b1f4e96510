"""A mask painted by mouse, keys and fingers in a real Chromium, and what is painted under it."""

import io
import re

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("playwright.sync_api")
from playwright.sync_api import expect

from stable_diffusion.pictures.inpainting import Inpainting
from stable_diffusion.record import inputs
from stable_diffusion.record.picture_files import read_parameters
from tests.browser.conftest import PATIENCE
from tests.browser.test_page import finished, generate, quiet_afterwards  # noqa: F401

pytestmark = pytest.mark.browser
expect.set_options(timeout=PATIENCE)

SIZE = (160, 128)


def picture():
    red, green = (Image.linear_gradient("L").rotate(angle).resize(SIZE) for angle in (0, 90))
    return Image.merge("RGB", (red, green, Image.new("L", SIZE, 90)))


def png(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def upload(page, image, place):
    files = {"name": "in.png", "mimeType": "image/png", "buffer": png(image)}
    page.locator("input[type=file]").nth(place).set_input_files(files)


@pytest.fixture
def painter(open_page):
    """Opens the page with a picture to paint on, and finds its canvas."""

    def open_(**how):
        page = open_page("inpaint", **how)
        upload(page, picture(), 0)
        expect(said(page)).to_have_text("Nothing painted yet")
        canvas(page).scroll_into_view_if_needed()
        return page

    return open_


def canvas(page):
    return page.get_by_role("application", name="Mask over the picture")


def said(page):
    return page.get_by_role("status").filter(has_text="painted")


def tool(page, name):
    return page.get_by_role("button", name=name, exact=True)


def at(page, x, y):
    """A place of the picture, given in its pixels, on the screen."""
    box = canvas(page).bounding_box()
    return box["x"] + box["width"] * x / SIZE[0], box["y"] + box["height"] * y / SIZE[1]


def stroke(page, *places):
    canvas(page).scroll_into_view_if_needed()
    page.mouse.move(*at(page, *places[0]))
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*at(page, *place), steps=4)
    page.mouse.up()


def mask_of(page):
    """The mask as it is downloaded."""
    with page.expect_download() as download:
        tool(page, "Download mask").click()
    mask = np.asarray(Image.open(download.value.path()).convert("L"))
    assert mask.shape == SIZE[::-1], "in the picture's own size"
    assert set(np.unique(mask)) <= {0, 255}, "with hard edges"
    return mask > 0


def test_brush_eraser_undo_and_keys(painter):
    page = painter()
    size = page.get_by_label("Brush size")
    expect(size).to_have_value("20")
    stroke(page, (40, 64), (120, 64))
    painted = mask_of(page)
    assert painted[55:73, 40:120].all() and not painted[:50].any() and not painted[:, 135:].any()
    assert abs(painted.sum() - (80 * 20 + np.pi * 100)) < 60, "a line of the brush's width with round ends"

    canvas(page).focus()
    page.keyboard.press("]")
    expect(size).to_have_value("25")
    for _ in range(3):
        page.keyboard.press("[")
    expect(size).to_have_value("13")
    page.keyboard.press("e")
    expect(tool(page, "Eraser")).to_have_attribute("aria-pressed", "true")
    stroke(page, (80, 40), (80, 90))
    erased = mask_of(page)
    assert not erased[:, 76:84].any() and (erased == painted)[:, 90:].all()

    canvas(page).press("Control+z")
    assert (mask_of(page) == painted).all()
    canvas(page).press("Control+z")
    expect(said(page)).to_have_text("Nothing painted yet")
    expect(tool(page, "Undo")).to_be_disabled()
    canvas(page).press("Shift+Control+Z")
    tool(page, "Redo").click()
    assert (mask_of(page) == erased).all()
    tool(page, "Invert").click()
    assert (mask_of(page) == ~erased).all()
    tool(page, "Clear").click()
    expect(said(page)).to_have_text("Nothing painted yet")
    tool(page, "Undo").click()
    assert (mask_of(page) == ~erased).all()


def test_a_mask_without_a_mouse_an_uploaded_one_and_other_pages(painter):
    page = painter()
    canvas(page).focus()
    for key in ["ArrowRight"] * 4 + ["ArrowUp"] * 2 + [" "]:
        page.keyboard.press(key)
    ys, xs = np.nonzero(mask_of(page))
    assert (round(xs.mean()), round(ys.mean())) == (100, 54) and 300 < len(xs) < 330

    given = Image.new("L", (80, 64))
    given.paste(255, (0, 0, 40, 16))
    upload(page, given, 1)
    expect(said(page)).to_have_text("13 % painted")
    half = mask_of(page)
    assert half[:32, :80].all() and half.sum() == 32 * 80
    tool(page, "Invert").click()
    page.get_by_role("link", name="Picture info").click(delay=100)  # milliseconds, as fingers have them
    page.get_by_label("Picture to read", exact=True).wait_for()
    page.get_by_role("link", name="Inpaint").click(delay=100)
    expect(said(page)).to_have_text("88 % painted")
    assert (mask_of(page) == ~half).all()
    tool(page, "Undo").click()
    assert (mask_of(page) == half).all()
    page.locator("input[type=file]").nth(1).set_input_files(
        {"name": "in.png", "mimeType": "image/png", "buffer": b"nonsense"}
    )
    expect(page.get_by_text("The browser cannot read that file")).to_be_visible()


@pytest.mark.parametrize("zoom", [0.5, 1.5, 3])
def test_strokes_land_where_they_are_drawn_in_a_browser_that_is_zoomed(painter, zoom):
    width, height = round(1280 / zoom), round(900 / zoom)  # as a browser zooms: fewer and larger CSS pixels
    page = painter(width=width, height=height, device_scale_factor=zoom)
    stroke(page, (40, 64), (120, 64))
    painted = mask_of(page)
    assert painted[56:72, 40:120].all() and not painted[:50].any() and not painted[78:].any()


def test_strokes_land_where_they_are_drawn_on_a_page_that_is_zoomed_by_css(painter):
    page = painter()
    page.evaluate("document.documentElement.style.zoom = 1.25")
    stroke(page, (40, 64), (120, 64))
    painted = mask_of(page)
    assert painted[56:72, 40:120].all() and not painted[:50].any() and not painted[78:].any()


def test_what_is_painted_changes_and_nothing_else(painter, request):
    page = painter()
    generate(page, request, "a red balloon", steps=6)
    expect(page.get_by_role("alert")).to_contain_text("Paint over what should change.")
    stroke(page, (60, 40), (100, 40), (100, 80))
    page.keyboard.press("Control+Enter")  # at once: nothing of the stroke is lost
    finished(page).wait_for()
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "it should not scroll sideways"
    with page.expect_download() as download:
        tool(page, "Download").click()
    file = download.value.path()
    known = read_parameters(file)
    assert (known.prompt, known.extra["Mask blur"], known.extra["Inpaint area"]) == (
        "a red balloon",
        "4",
        "Whole picture",
    )
    mask = inputs.find(inputs.recorded(known.extra, inputs.MASK), file).open().convert("L")
    assert ((np.asarray(mask) > 0) == mask_of(page)).all()
    before, after = np.asarray(picture()), np.asarray(Image.open(file))
    kept = np.asarray(Inpainting(picture(), mask, 128, 128).feather) == 0
    assert (after[kept] == before[kept]).all() and 0.3 < kept.mean() < 0.95
    assert (after[np.asarray(mask) > 0] != before[np.asarray(mask) > 0]).any(1).mean() > 0.9

    painted = said(page).text_content()
    page.reload()
    expect(said(page)).to_have_text(painted)
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("a red balloon")


def test_a_finger_paints_and_two_do_not(painter):
    page = painter(width=390, height=844, scheme="dark", has_touch=True)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "it should not scroll sideways"
    touches = page.context.new_cdp_session(page)

    def touch(kind, *places):
        points = [dict(zip("xy", at(page, *place), strict=True), id=i) for i, place in enumerate(places)]
        touches.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    before = canvas(page).bounding_box()
    touch("touchStart", (30, 30))
    for y in (50, 70, 90):
        touch("touchMove", (30, y))
    touch("touchEnd")
    expect(said(page)).to_have_text(re.compile(r"^(7|8) % painted"))
    painted = mask_of(page)
    assert painted[35:85, 25:35].all() and not painted[:, 50:].any()
    assert canvas(page).bounding_box() == before, "the page stays where it is"

    touch("touchStart", (80, 40))
    touch("touchMove", (84, 44))
    touch("touchStart", (84, 44), (120, 90))
    touch("touchMove", (90, 50), (110, 80))
    touch("touchEnd")
    assert (mask_of(page) == painted).all(), "a pinch leaves nothing behind"
    touch("touchStart", (120, 30))
    touch("touchEnd")
    assert mask_of(page)[25:35, 115:125].all(), "and one finger paints again"
