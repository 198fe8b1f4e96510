"""What a person sees and does, with the embedded model, in a real Chromium."""

import base64
import contextlib
import http.client
import io
import re
import time

import pytest
from PIL import Image

pytest.importorskip("playwright.sync_api")
from playwright.sync_api import TimeoutError as PlaywrightTimeout
from playwright.sync_api import expect

from stable_diffusion.record import picture_files
from tests.browser.conftest import PATIENCE

pytestmark = pytest.mark.browser
expect.set_options(timeout=PATIENCE)

# What the estimates that are shown at this moment look like.
ESTIMATES = """() => [...document.querySelectorAll('img[alt^="The current estimate of the picture, step"]')]
    .filter((shown) => shown.checkVisibility()).map((shown) => shown.src)"""
PROMPT = "a red house on green hills at sunset, with clouds"


@pytest.fixture(autouse=True)
def quiet_afterwards(request, open_page):
    """Leave no job behind that the next test would wait for."""
    yield
    for page in getattr(request.node, "painting", []):
        cancel = page.get_by_role("button", name="Cancel")
        for _ in range(5):  # jobs of one page, one after another
            if cancel.is_enabled():
                with contextlib.suppress(PlaywrightTimeout):  # the job has ended meanwhile
                    cancel.click(timeout=3000)
                page.wait_for_timeout(500)
        expect(cancel).to_be_disabled()


def generate(page, request, prompt=PROMPT, steps=None):
    request.node.painting = [*getattr(request.node, "painting", []), page]
    page.get_by_label("Prompt", exact=True).fill(prompt)
    if steps is not None:
        set_slider(page, "Steps", steps)
    page.get_by_role("button", name="Generate").click()


def slider(page, name):
    return page.get_by_role("group", name=name, exact=True).get_by_role("slider")


def set_slider(page, name, value):
    thumb = slider(page, name)
    up = value > int(thumb.get_attribute("min"))
    thumb.fill(str(value - 1 if up else value + 1))
    thumb.press("ArrowRight" if up else "ArrowLeft")  # a key, as a person's: that is what the page is told of
    expect(thumb).to_have_value(str(value))


def finished(page):
    return page.get_by_role("img", name=re.compile("^Finished picture, seed"))


def estimate(page):
    return page.get_by_role("img", name=re.compile("^The current estimate of the picture, step"))


def test_a_prompt_becomes_a_picture_while_one_watches(open_page, request, outputs):
    page = open_page()
    generate(page, request, steps=60)
    seen = set()
    end = time.time() + PATIENCE / 1000
    while not finished(page).is_visible():
        assert time.time() < end
        seen.update(page.evaluate(ESTIMATES))
        page.wait_for_timeout(50)
    assert len(seen) >= 3, "previews should arrive while it paints"
    with page.expect_download() as download:
        page.get_by_role("button", name="Download").click()
    found = picture_files.read_parameters(download.value.path())
    assert (found.prompt, found.steps, found.model) == (PROMPT, 60, "postcards-tiny")
    assert Image.open(download.value.path()).size == (128, 128)
    assert list(outputs.rglob("*.png"))


def test_the_steps_can_be_replayed(open_page, request):
    page = open_page()
    generate(page, request, steps=6)
    finished(page).wait_for()
    page.get_by_text("Replay the denoising").click()
    set_slider(page, "Step", 1)
    expect(page.get_by_role("img", name="The current estimate of the picture, step 1 of 6")).to_be_visible()
    set_slider(page, "Step", 6)
    expect(page.get_by_role("img", name="The channels of the latents, step 6 of 6")).to_be_visible()


def test_tokens_are_counted_while_one_types(open_page):
    page = open_page()
    field = page.get_by_label("Prompt", exact=True)
    field.press_sequentially(PROMPT)
    expect(page.get_by_text("11 / 75 tokens")).to_be_visible()
    field.press_sequentially(" house" * 70)
    expect(page.get_by_text("81 / 150 tokens")).to_be_visible()
    expect(field).to_be_focused()
    field.fill("")
    expect(page.get_by_text("0 / 75 tokens")).to_have_count(2)


def test_a_replay_decodes_a_step_in_full(open_page, request):
    page = open_page()
    generate(page, request, steps=4)
    finished(page).wait_for()
    page.get_by_text("Replay the denoising").click()
    page.get_by_test_id("stMain").get_by_role("button", name="Full decode").click()
    set_slider(page, "Step", 2)
    expect(page.get_by_role("img", name="The current estimate, decoded in full, step 2 of 4")).to_be_visible()


def test_several_pictures_one_skipped(open_page, request):
    page = open_page()
    page.get_by_label("Number of pictures").fill("3")
    page.get_by_label("Number of pictures").press("Enter")
    generate(page, request, steps=90)  # long, since a skip that comes as a picture ends has nothing to skip
    estimate(page).wait_for()
    page.get_by_role("button", name="Skip").click()
    expect(page.get_by_text(re.compile("Picture [23] of 3"))).to_be_visible()
    expect(page.get_by_role("button", name="Cancel")).to_be_disabled()
    expect(page.get_by_role("img", name=re.compile("^Finished picture, small"))).to_have_count(2)
    page.get_by_role("radio", name=re.compile(r"^[12] \(unfinished\)$")).click()  # by now it may be the second one
    expect(page.get_by_role("img", name=re.compile("^The current estimate of the picture, step"))).to_be_visible()


@pytest.mark.parametrize("prompt", ["🏠 بيت أحمر على تلال خضراء " * 40, "x" * 1000], ids=["emoji and RTL", "1000"])
def test_odd_prompts_come_back_as_they_were(open_page, request, outputs, prompt):
    page = open_page()
    generate(page, request, prompt.strip(), steps=1)
    finished(page).wait_for()
    newest = max(outputs.rglob("*.png"), key=lambda path: path.stat().st_mtime_ns)
    assert picture_files.read_parameters(newest).prompt == prompt.strip()
    page.reload()
    expect(page.get_by_label("Prompt", exact=True)).to_have_value(prompt.strip())


def test_a_model_that_is_not_downloaded_asks_first(open_page):
    page = open_page()
    page.get_by_label("Model", exact=True).press("ArrowDown")
    page.get_by_role("option", name=re.compile("^SDXL Turbo .*not downloaded")).click()
    expect(page.get_by_text("Not on this machine yet.")).to_be_visible()
    expect(page.get_by_text("Its licence: Stability AI Non-Commercial Community.")).to_be_visible()
    expect(page.get_by_role("button", name="Download")).to_be_enabled()
    page.get_by_label("Prompt", exact=True).fill(PROMPT)
    page.get_by_role("button", name="Generate").click()
    expect(page.get_by_role("alert")).to_contain_text("is not downloaded yet")


@pytest.mark.parametrize("width", [390, 1280])
def test_how_it_works_teaches_on_the_model(open_page, width):
    page = open_page("how_it_works", width=width, ready="Lesson")
    expect(page.get_by_text("This is everything that happens")).to_be_visible()
    page.get_by_role("radio", name="inpainting", exact=True).click()
    expect(page.get_by_text("at every step what is to stay is put back")).to_be_visible()
    page.get_by_role("link", name="U-Net, says the noise").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="The U-Net and its skips")).to_be_visible()
    expect(page.get_by_role("img", name="The estimate without: up 3")).to_be_visible()
    page.get_by_role("button", name="Next: Attention").click()
    expect(page.get_by_role("img", name=re.compile("^Where .* acts: Steps? 1 "))).to_be_visible()
    page.get_by_role("button", name="Next: A convolution by hand").click()
    picture = page.get_by_role("img", name="The result of: edges from left to right")
    expect(picture).to_be_visible()
    page.goto(page.url.replace("lesson=convolution", "lesson=score"))
    expect(page.get_by_text("After 25 of 100 steps")).to_be_visible()
    set_slider(page, "Steps of noise", 60)
    expect(page.get_by_text("After 60 of 100 steps")).to_be_visible()
    page.goto(page.url.replace("lesson=score", "lesson=tokens"))
    expect(page.get_by_text("11 tokens and the two marks")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "it should not scroll sideways"


def test_image_to_image_starts_from_an_upload(open_page, request, tmp_path):
    page = open_page("image_to_image")
    buffer = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").resize((200, 150)).save(buffer, "PNG")
    page.locator("input[type=file]").set_input_files(
        {"name": "in.png", "mimeType": "image/png", "buffer": buffer.getvalue()}
    )
    expect(page.get_by_role("img", name="The input picture")).to_be_visible()
    expect(slider(page, "Denoising strength")).to_have_value("0.7")
    expect(page.get_by_text("Runs the last 14 of 20 steps")).to_be_visible()
    generate(page, request)
    finished(page).wait_for()


def test_the_panel_stays_in_sight_beside_a_long_form(open_page):
    page = open_page("inpaint", height=600)
    page.get_by_role("button", name="Generate").evaluate("button => button.scrollIntoView({block: 'end'})")
    expect(page.get_by_text("Nothing painted yet")).to_be_in_viewport()
    assert page.evaluate("document.querySelector('[data-testid=stMain]').scrollTop") > 200


def test_what_is_no_picture_is_refused_beside_the_form(open_page):
    page = open_page("image_to_image")
    page.locator("input[type=file]").set_input_files(
        {"name": "in.png", "mimeType": "image/png", "buffer": b"not a picture"}
    )
    expect(page.get_by_role("alert")).to_contain_text("picture")


def test_the_keyboard_starts_and_stops(open_page, request):
    page = open_page()
    set_slider(page, "Steps", 150)
    request.node.painting = [page]
    page.get_by_label("Prompt", exact=True).fill(PROMPT)
    page.keyboard.press("Control+Enter")
    estimate(page).wait_for()
    page.keyboard.press("Control+Shift+Enter")
    expect(page.get_by_role("button", name="Cancel")).to_be_disabled()
    expect(page.get_by_text("Cancelled. Finished before that: 0 of 1.")).to_be_visible()
    expect(page.get_by_label("Prompt", exact=True)).to_have_value(PROMPT)


def test_escape_closes_what_is_open_and_cancels_nothing(open_page, request):
    page = open_page()
    generate(page, request, steps=150)
    estimate(page).wait_for()
    sampler = page.get_by_label("Sampler", exact=True)
    sampler.press("ArrowDown")
    expect(page.get_by_role("option", name="Heun")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("option")).to_have_count(0)
    page.get_by_label("Prompt", exact=True).press("Escape")
    page.locator("body").press("Escape")
    page.wait_for_timeout(500)
    expect(page.get_by_text("Cancelled.")).to_have_count(0)
    estimate(page).wait_for()


def test_what_was_cancelled_can_be_kept(open_page, request, outputs):
    page = open_page()
    generate(page, request, "a blue tent that was stopped", steps=150)
    estimate(page).wait_for()
    page.get_by_role("button", name="Cancel").click()
    page.get_by_role("button", name="Keep the picture so far").click()
    finished(page).wait_for()
    newest = max(outputs.rglob("*.png"), key=lambda path: path.stat().st_mtime_ns)
    found = picture_files.read_parameters(newest)
    assert found.prompt == "a blue tent that was stopped" and found.extra["Stopped after"].endswith("of 150 steps")


def test_nothing_is_painted_while_a_field_is_not_valid(open_page, request):
    page = open_page()
    page.get_by_label("Prompt", exact=True).fill(PROMPT)
    request.node.painting = [page]
    problem = page.get_by_test_id("stMain").get_by_role("alert")
    for field, typed, words in (
        ("Width", "99999999999999999999", "Width: 99999999999999999999 should be a number from 64 to 2048."),
        ("Width", "-5", "Width: -5 should be"),
        ("Number of pictures", "17", "Number of pictures: 17 should be a number from 1 to 16."),
        ("Seed", "-5", "Seed: '-5' should be a whole number from -1 to 18446744073709551615."),
        ("Seed", "18446744073709551616", "Seed: '18446744073709551616' should be"),
    ):
        before = page.get_by_label(field, exact=True).input_value()
        page.get_by_label(field, exact=True).fill(typed)
        page.get_by_role("button", name="Generate").click()
        expect(problem).to_contain_text(words)
        expect(page.get_by_text("Nothing painted yet")).to_be_visible()
        page.get_by_label(field, exact=True).fill(before)
        page.get_by_label(field, exact=True).press("Enter")
    page.get_by_label("Seed", exact=True).fill("18446744073709551615")
    page.keyboard.press("Control+Enter")  # from within the field
    expect(page.get_by_role("img", name="Finished picture, seed 18446744073709551615")).to_be_visible()
    expect(problem).to_have_count(0)


def test_a_fresh_tab_sees_the_queue_shows_a_job_and_stops_it(open_page, request):
    first = open_page()
    first.get_by_label("Number of pictures").fill("16")  # enough for all that follows
    first.get_by_label("Number of pictures").press("Enter")
    generate(first, request, steps=150)
    estimate(first).wait_for()
    generate(first, request, "a blue tent by the sea", steps=149)
    queue = first.locator(".st-key-queue")
    expect(queue.get_by_text("a blue tent by the sea · 16 pictures · queued")).to_be_visible()
    expect(estimate(first)).to_be_visible()
    fresh = open_page(width=390, scheme="dark")
    other = fresh.locator(".st-key-queue")
    expect(other.get_by_text("a blue tent by the sea · 16 pictures · queued")).to_be_visible()
    assert fresh.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "it should not scroll sideways"
    other.get_by_role("button", name="Show").first.click()
    expect(estimate(fresh)).to_be_visible()
    other.get_by_role("button", name="Remove").click()
    expect(queue.get_by_text("a blue tent by the sea")).to_have_count(0)
    fresh.get_by_role("button", name="Cancel").click()
    for page in (first, fresh):  # two tabs on one job
        expect(page.get_by_text(re.compile("Cancelled. Finished before that: [0-9]+ of 16."))).to_be_visible()
        expect(page.get_by_role("button", name="Cancel")).to_be_disabled()


# Pastes, or drops, what the second argument makes of an empty DataTransfer.
GIVE = """([target, type, bytes, text]) => {
    const data = new DataTransfer()
    if (bytes) data.items.add(new File([Uint8Array.from(bytes)], "image.png", { type: "image/png" }))
    if (text) data.setData(type === "drop" ? "text/uri-list" : "text/plain", text)
    const more = { bubbles: true, cancelable: true }
    const event = type === "drop" ? new DragEvent(type, { dataTransfer: data, ...more })
        : new ClipboardEvent(type, { clipboardData: data, ...more })
    return document.querySelector(target).dispatchEvent(event)
}"""
FIELD = 'textarea[aria-label="Prompt"]'


def teal(size):
    content = io.BytesIO()
    Image.new("RGB", size, "teal").save(content, "PNG")
    return list(content.getvalue())


def give(page, *what):
    """Paste or drop something, as soon as the page takes it, which it shows by keeping it from the browser."""
    end = time.time() + PATIENCE / 1000
    while page.evaluate(GIVE, list(what)):
        assert time.time() < end
        page.wait_for_timeout(100)


def test_a_picture_is_pasted_anywhere(open_page):
    page = open_page("image_to_image")
    page.get_by_label("Input picture").first.wait_for(state="attached")
    for target, size in (("body", (48, 40)), (FIELD, (64, 56))):
        give(page, target, "paste", teal(size), "")
        expect(page.get_by_text(f"The picture has {size[0]} × {size[1]} pixels")).to_be_visible()
    expect(page.get_by_text("A picture was pasted from the clipboard.").first).to_be_visible()
    assert page.evaluate(GIVE, [FIELD, "paste", teal((8, 8)), "a text"]), "a text field keeps the text"
    page.get_by_role("button", name="Put back the one before").click()
    expect(page.get_by_text("The picture has 48 × 40 pixels")).to_be_visible()
    address = f"data:image/png;base64,{base64.b64encode(bytes(teal((72, 40)))).decode()}"
    give(page, '[data-testid="stFileUploader"]', "drop", None, address)
    expect(page.get_by_text("The picture has 72 × 40 pixels")).to_be_visible()


@pytest.mark.parametrize(("path", "ready"), [("picture_info", "Picture to read"), ("upscale", "Pictures to enlarge")])
def test_a_picture_is_pasted_on_pages_about_pictures(open_page, path, ready):
    page = open_page(path, ready=ready)
    give(page, "body", "paste", teal((48, 40)), "")
    expect(page.get_by_text("pasted image.png").first).to_be_visible()
    expect(page.get_by_text(re.compile("48 × 40|192 × 160")).first).to_be_visible()


# What a browser's translator does: every text becomes another one, within elements that the page knows nothing of.
TRANSLATE = """() => {
    const skip = "script, style, textarea, [translate=no], .notranslate"
    const translate = (root) => {
        const texts = document.createTreeWalker(root, NodeFilter.SHOW_TEXT)
        const found = []
        while (texts.nextNode()) found.push(texts.currentNode)
        for (const text of found) {
            const parent = text.parentElement
            if (!text.data.trim() || !parent || parent.closest(skip) || parent.closest("font")) continue
            const outer = document.createElement("font")
            outer.append(Object.assign(document.createElement("font"), { textContent: `¿${text.data}?` }))
            parent.replaceChild(outer, text)
        }
    }
    translate(document.body)
    new MutationObserver((changes) => {
        for (const change of changes) for (const node of change.addedNodes) if (node.isConnected) {
            if (node.nodeType === 1) translate(node)
        }
    }).observe(document.body, { childList: true, subtree: true })
}"""


def test_a_translated_page_paints(open_page, request):
    page = open_page()
    failures = []
    page.on("pageerror", lambda error: failures.append(str(error)))
    page.evaluate(TRANSLATE)
    expect(page.get_by_text("¿Nothing painted yet?")).to_be_visible()
    request.node.painting = [page]
    page.get_by_label("Prompt", exact=True).fill(PROMPT)
    set_slider(page, "Steps", 60)
    page.get_by_role("button", name="Generate").first.click()
    finished(page).wait_for()
    page.get_by_text("Replay the denoising").click()
    page.get_by_label("Prompt", exact=True).fill("a blue tent")
    page.get_by_role("button", name="Generate").first.click()
    page.wait_for_timeout(1500)
    finished(page).wait_for()
    assert failures == []
    expect(page.get_by_test_id("stException")).to_have_count(0)


def tab_to(page, target):
    """Press Tab, as somebody without a mouse does, until it is there."""
    for _ in range(80):
        if target.evaluate("element => element === document.activeElement"):
            return
        page.keyboard.press("Tab")
    raise AssertionError(f"no Tab leads to {target}")


def test_everything_is_reached_without_a_mouse(open_page, request):
    page = open_page()
    request.node.painting = [page]
    tab_to(page, slider(page, "Steps"))
    page.keyboard.press("Home")
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    expect(slider(page, "Steps")).to_have_value("4")
    tab_to(page, page.get_by_label("Prompt", exact=True))
    page.keyboard.type(PROMPT)
    tab_to(page, page.get_by_role("button", name="Generate"))
    page.keyboard.press("Enter")
    finished(page).wait_for()
    replay = page.locator("summary", has_text="Replay the denoising")
    tab_to(page, replay)
    page.keyboard.press("Enter")
    tab_to(page, slider(page, "Step"))
    page.keyboard.press("ArrowLeft")
    expect(page.get_by_role("img", name="The current estimate of the picture, step 3 of 4")).to_be_visible()


def test_a_reload_finds_the_running_job(open_page, request):
    page = open_page()
    generate(page, request, steps=150)
    estimate(page).wait_for()
    page.reload()
    estimate(page).wait_for()
    expect(page.get_by_label("Prompt", exact=True)).to_have_value(PROMPT)
    expect(slider(page, "Steps")).to_have_value("150")
    page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_role("button", name="Cancel")).to_be_disabled()


def test_a_second_tab_waits_and_the_pages_keep_the_job(open_page, request):
    first, second = open_page(), open_page()
    second.get_by_label("Prompt", exact=True).fill("a blue tent by the sea")
    set_slider(second, "Steps", 1)
    generate(first, request, steps=150)
    estimate(first).wait_for()
    request.node.painting.append(second)
    second.get_by_role("button", name="Generate").click()
    expect(second.get_by_text("Queued, position 1")).to_be_visible()
    first.get_by_role("link", name="Image to image").click()
    slider(first, "Denoising strength").wait_for(state="attached")
    estimate(first).wait_for()
    first.get_by_role("button", name="Cancel").click()
    finished(second).wait_for()


def test_many_quick_clicks_make_one_picture(open_page, request, outputs):
    page = open_page()
    before = len(list(outputs.rglob("*.png")))
    page.get_by_label("Prompt", exact=True).fill(PROMPT)
    set_slider(page, "Steps", 2)
    request.node.painting = [page]
    page.get_by_role("button", name="Generate").evaluate("button => { for (let i = 0; i < 50; i++) button.click() }")
    finished(page).wait_for()
    page.wait_for_timeout(1000)
    expect(page.get_by_role("button", name="Cancel")).to_be_disabled()
    assert 1 <= len(list(outputs.rglob("*.png"))) - before <= 2


def test_a_mistake_is_said_in_words_and_nothing_is_lost(open_page, request):
    page = open_page()
    page.get_by_label("Width").fill("130")
    page.get_by_label("Width").press("Enter")
    generate(page, request, "a *red* <b>house</b> :smile: $x$")
    expect(page.get_by_role("alert")).to_contain_text("width = 130 should be a multiple of 8")
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("a *red* <b>house</b> :smile: $x$")


SOCKET = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}


@pytest.mark.parametrize(
    ("method", "path", "more", "status"),
    [
        ("GET", "/", {}, 200),
        ("GET", "/_stcore/health", {}, 200),
        ("GET", "/_stcore/host-config", {}, 200),
        ("GET", "/media/none.png", {}, 404),
        ("PUT", "/_stcore/upload_file/session/file", {}, 403),
        ("GET", "/_stcore/stream", SOCKET, 101),
    ],
)
def test_a_foreign_host_or_origin_is_refused(server, method, path, more, status):
    own = server.removeprefix("http://")

    def ask(host, **headers):
        connection = http.client.HTTPConnection(own, timeout=10)
        connection.request(method, path, headers=more | {"Host": host} | headers)
        answer = connection.getresponse().status
        connection.close()
        return answer

    assert ask(own) == ask(own, Origin=server) == status
    foreign = 403 if more is SOCKET else 400  # a socket that is closed before it opens has only this status
    assert ask("evil.example") == ask("evil.example", Origin="http://evil.example") == foreign
    assert ask(own, Origin="http://evil.example") == ask(own, Origin="null") == 403


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_it_fits_the_screen(open_page, request, width, scheme):
    page = open_page(width=width, scheme=scheme)
    page.get_by_label("Prompt", exact=True).fill(PROMPT)
    request.node.painting = [page]
    page.get_by_role("button", name="Generate").click()
    finished(page).wait_for()
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "it should not scroll sideways"
