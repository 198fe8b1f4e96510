"""Gallery and Picture info in a real Chromium, on pictures that were there before."""

import io
import zipfile

import pytest
from PIL import Image

pytest.importorskip("playwright.sync_api")
from playwright.sync_api import expect

from stable_diffusion.record import picture_files
from stable_diffusion.record.parameters import Parameters
from tests.browser.conftest import PATIENCE

pytestmark = pytest.mark.browser
expect.set_options(timeout=PATIENCE)

HOSTILE = (
    'a *red* <b>house</b> <img src=x onerror="document.title=1"> :smile: $x$ ![x](http://evil.example/x.png) 🏠 بيت'
)
COUNT = 30  # two pages


@pytest.fixture
def pictures(outputs):
    """Pictures of a day of their own, made anew for each test; what other tests painted is of later days."""
    folder = outputs / "2020-01-01"
    for path in [*folder.glob("*"), *(outputs / ".trash" / folder.name).glob("*")]:
        path.unlink()
    for seed in range(1, COUNT + 1):
        prompt = HOSTILE if seed == COUNT else f"unusual picture number {seed}"
        known = Parameters(prompt, "rain", 7, "DPM++ 2M", "Karras", 6.5, seed, 64, 64, model="postcards-tiny")
        picture_files.save_new_picture(Image.new("RGB", (64, 64), (seed * 8, 90, 120)), folder, known)
    return folder


@pytest.fixture
def gallery(open_page, pictures):
    """Opens the gallery with these pictures alone in it."""

    def open_(**how):
        page = open_page("gallery", ready="Search in prompts", **how)
        search(page, "unusual")
        expect(page.get_by_text(f"{COUNT - 1} pictures")).to_be_visible()
        return page

    return open_


def search(page, words):
    page.get_by_label("Search in prompts").fill(words)
    page.get_by_label("Search in prompts").press("Enter")


def small(page):
    return page.get_by_role("img", name="Small picture:")


def opened(page, seed):
    """The picture that is open, not the small one of the same prompt."""
    return page.get_by_role("img", name=f"Picture: unusual picture number {seed}", exact=True)


def card(page, words):
    found = page.locator(".st-key-gallery_cards").get_by_role("button", name=words, exact=True)
    expect(found).to_have_count(1)  # two while the page is drawn anew
    return found


def choose(page, seed):
    box = page.get_by_role("checkbox", name=f"Seed {seed}", exact=True)
    expect(box).to_have_count(1)  # two while the page is drawn anew
    box.focus()
    page.keyboard.press("Space")
    expect(box).to_be_checked()


def test_search_turn_open_and_reuse_all_by_keyboard(gallery):
    page = gallery()
    expect(small(page)).to_have_count(24)
    page.get_by_role("button", name="Older").press("Enter")
    expect(small(page)).to_have_count(COUNT - 1 - 24)
    search(page, "NUMBER 17")
    expect(small(page)).to_have_count(1)
    card(page, "unusual picture number 17").press("Enter")
    expect(opened(page, 17)).to_be_visible()
    expect(page.get_by_role("table")).to_contain_text("DPM++ 2M")
    page.get_by_role("button", name="Reuse all settings").press("Enter")
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("unusual picture number 17")
    expect(page.get_by_label("Seed", exact=True)).to_have_value("17")


def test_a_reload_and_the_back_button_find_the_picture_that_was_open(gallery):
    page = gallery()
    card(page, "unusual picture number 27").click()
    expect(opened(page, 27)).to_be_visible()
    page.reload()
    expect(opened(page, 27)).to_be_visible()
    page.get_by_role("button", name="Older").click()
    expect(opened(page, 26)).to_be_visible()
    page.go_back()
    expect(opened(page, 27)).to_be_visible()


def test_what_is_sent_to_a_form_shows_the_form_from_its_top(gallery):
    page = gallery(width=390, height=500)
    card(page, "unusual picture number 27").click()
    expect(opened(page, 27)).to_be_visible()
    button = page.get_by_role("button", name="Send to image to image")
    button.evaluate("button => button.scrollIntoView({block: 'start'})")
    assert page.evaluate("document.querySelector('[data-testid=stMain]').scrollTop") > 400
    button.press("Enter")
    expect(page.get_by_text("Denoising strength")).to_be_visible()
    expect(page.get_by_label("Prompt", exact=True)).to_be_in_viewport()


def test_choose_favour_zip_delete_and_undo(gallery, pictures):
    page = gallery()
    choose(page, 29)
    choose(page, 28)
    expect(page.get_by_text("2 chosen")).to_be_visible()
    page.get_by_role("button", name="Favourite", exact=True).click()
    expect(page.get_by_role("button", name="★ unusual picture number 29")).to_be_visible()
    with page.expect_download() as download:
        page.get_by_role("button", name="Download as zip").click()
    with zipfile.ZipFile(download.value.path()) as archive:
        assert {archive.read(name) for name in archive.namelist()} == {
            path.read_bytes() for path in pictures.iterdir() if path.stem.endswith(("-28", "-29"))
        }
    page.get_by_role("button", name="Move to trash").click()
    expect(page.get_by_text("2 pictures moved to the trash.")).to_be_visible()
    assert len(list(pictures.iterdir())) == COUNT - 2
    page.get_by_role("button", name="Undo").click()
    expect(page.get_by_role("button", name="★ unusual picture number 29")).to_be_visible()
    assert len(list(pictures.iterdir())) == COUNT


def test_a_picture_comes_down_as_it_is_and_picture_info_reads_it(gallery, pictures):
    page = gallery()
    card(page, "unusual picture number 27").click()
    with page.expect_download() as download:
        page.get_by_role("button", name="Download", exact=True).click()
    (original,) = pictures.glob("*-27.png")
    assert download.value.path().read_bytes() == original.read_bytes()
    page.get_by_role("link", name="Picture info").click()
    page.locator("input[type=file]").set_input_files(
        {"name": download.value.suggested_filename, "mimeType": "image/png", "buffer": original.read_bytes()}
    )
    expect(page.get_by_role("table")).to_contain_text("postcards-tiny")
    page.get_by_role("button", name="Send to image to image").click()
    expect(page.get_by_role("img", name="The input picture")).to_be_visible()
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("unusual picture number 27")


def test_a_hostile_prompt_shows_as_it_was_written(open_page, pictures):
    page = open_page("gallery", ready="Search in prompts")
    search(page, "onerror")
    card(page, 'a *red* <b>house</b> <img src=x onerror="document.t…').click()
    expect(page.get_by_text(HOSTILE, exact=True).first).to_be_visible()
    assert page.locator("img[src=x], b:has-text('house')").count() == 0
    assert page.title() != "1"


def test_what_is_no_picture_is_refused_in_words(open_page):
    page = open_page("picture_info", ready="Picture to read")
    page.locator("input[type=file]").set_input_files(
        {"name": "in.png", "mimeType": "image/png", "buffer": b"\x89PNG\r\n\x1a\nbut no more"}
    )
    expect(page.get_by_role("alert")).to_contain_text("picture")


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_it_fits_the_screen(gallery, open_page, width, scheme):
    page = gallery(width=width, scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "it should not scroll sideways"
    first, second = (small(page).nth(i).bounding_box() for i in (0, 1))
    assert first["y"] == second["y"], "at least two stand side by side"
    assert page.locator(".st-key-gallery_cards img:not([alt])").count() == 0
    picture = page.get_by_role("img", name="Small picture: unusual picture number 27", exact=True)
    picture.scroll_into_view_if_needed()
    box = picture.bounding_box()
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)  # the button under it reaches over it
    expect(opened(page, 27)).to_be_visible()
    buffer = io.BytesIO()
    Image.new("RGB", (30, 20)).save(buffer, "WEBP")
    info = open_page("picture_info", width=width, scheme=scheme, ready="Picture to read")
    info.locator("input[type=file]").set_input_files(
        {"name": "a.webp", "mimeType": "image/webp", "buffer": buffer.getvalue()}
    )
    expect(info.get_by_text("does not say how it was made")).to_be_visible()
    assert info.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
