"""The page's own field for prompts: what only a browser does."""

import json
import re
from pathlib import Path

import pytest

pytest.importorskip("playwright.sync_api")
from playwright.sync_api import expect

from stable_diffusion.record import picture_files
from tests.browser.conftest import PATIENCE, serve
from tests.browser.test_contrast import faint
from tests.browser.test_page import finished, quiet_afterwards, set_slider  # noqa: F401

pytestmark = pytest.mark.browser
expect.set_options(timeout=PATIENCE)

COMPONENTS = Path(__file__).parents[2] / "stable_diffusion" / "webui" / "components"
# "[" and "]" here are the ends of the selection, "|" is the caret.
WEIGHTS = [
    ("a r|ed house", "Up", "a (r|ed:1.1) house"),
    ("a (r|ed:1.1) house", "Up", "a (r|ed:1.2) house"),
    ("a (red:1.1|) house", "Down", "a red| house"),
    ("red|", "Down", "(red|:0.9)"),
    ("a «red house» b", "Up", "a («red house»:1.1) b"),
    ("a « red house » b", "Up", "a  («red house»:1.1)  b"),
    ("a («red house»:1.1) b", "Down", "a «red house» b"),
    ("a «(red house:1.05)» b", "Up", "a («red house»:1.15) b"),
    ("a (red ho|use:1.1)", "Down", "a «red house»"),
    ("((r|ed))", "Up", "((r|ed:1.2))"),
    ("(a «red» house:1.3)", "Up", "(a («red»:1.1) house:1.3)"),
    (r"\(ha|ppy\), red", "Up", r"\((ha|ppy:1.1)\), red"),
    ("[re|d:blue:0.4]", "Up", "[(re|d:1.1):blue:0.4]"),
    ("{r|ed|blue}", "Up", "{(r|ed:1.1)|blue}"),
    ("__col|our__", "Up", "(__col|our__:1.1)"),
    ("a <lora:in|k:0.8> b", "Up", "a <lora:in|k:0.85> b"),
    ("<lora:in|k>", "Down", "<lora:in|k:0.95>"),
    ("بي|ت أحمر", "Up", "(بي|ت:1.1) أحمر"),
    ("a hous|e.", "Up", "a (hous|e:1.1)."),
    ("(re|d:0)", "Down", "(re|d:0)"),
    # What has no weight of its own stays.
    ("a |, b", "Up", None),
    ("red AN|D blue", "Up", None),
    ("[red:blue:0|.4]", "Up", None),
    ("a («red» b", "Up", "a ((«red»:1.1) b"),
    ("«a (red», b)", "Up", None),
    ("", "Up", None),
]
LORA = {"ss_tag_frequency": json.dumps({"10_x": {"papercut": 20, "ink wash": 20, "tree": 3}})}


@pytest.fixture(scope="module")
def server(outputs, tmp_path_factory):
    """A page with something to complete."""
    folder = tmp_path_factory.mktemp("prompts")
    for name, text in (("wildcards/colour.txt", "red\nblue"), ("wildcards/animals/cat.txt", "tabby")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (folder / "embeddings").mkdir()
    (folder / "embeddings" / "easyneg.pt").write_bytes(b"")
    (folder / "loras").mkdir()
    header = json.dumps({"__metadata__": LORA, "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    for name in ("paper-cut", "watercolour"):
        data = len(header).to_bytes(8, "little") + header + bytes(4)
        (folder / "loras" / f"{name}.safetensors").write_bytes(data)
    kinds = ("loras", "embeddings", "wildcards")
    environment = {f"STABLE_DIFFUSION_{kind.upper()}": str(folder / kind) for kind in kinds}
    environment |= {"HF_HUB_OFFLINE": "1", "STABLE_DIFFUSION_WHILE_TYPING": "60"}  # however busy the machine is
    with serve(outputs, folder / "log", environment) as address:
        yield address


def prompt(page):
    return page.get_by_label("Prompt", exact=True)


def options(page):
    return page.get_by_role("listbox").get_by_role("option")


def marked(text):
    """A text without its marks, and the selection that they mean."""
    bare = re.sub("[«»]", "", text) if "«" in text else text.replace("|", "", 1)
    if "«" in text:
        return bare, text.index("«"), text.index("»") - 1
    return (bare, text.index("|"), text.index("|")) if "|" in text else (text, 0, 0)


def test_weights(browser):
    page = browser.new_page()
    source = (COMPONENTS / "prompt_weights.js").read_text(encoding="utf-8") + "\nexport { weighed }"
    ask = """async ([source, cases]) => {
        const { weighed } = await import("data:text/javascript;charset=utf-8," + encodeURIComponent(source))
        return cases.map(([text, start, end, up]) => {
            const edit = weighed(text, start, end, up)
            return edit && [text.slice(0, edit.from) + edit.text + text.slice(edit.to), ...edit.select]
        })
    }"""
    found = page.evaluate(ask, [source, [[*marked(text), key == "Up"] for text, key, _ in WEIGHTS]])
    page.close()
    for (text, key, wanted), answer in zip(WEIGHTS, found, strict=True):
        assert answer == (None if wanted is None else list(marked(wanted))), f"{text} {key}"


def test_nothing_jumps_when_a_count_changes(open_page):
    """A click on something that moves between the press and the release is lost."""
    page = open_page()
    page.get_by_text("0 / 75 tokens").nth(1).wait_for()
    generate = page.get_by_role("button", name="Generate")
    generate.evaluate(
        """(button) => {
            window.places = new Set()
            const look = () => window.places.add(Math.round(button.getBoundingClientRect().top))
            look()
            new MutationObserver(look).observe(document.body, { subtree: true, childList: true })
        }"""
    )
    for text in ("a house", "a red house by the sea", "a tent", "a white tent", "a tree", "a tree in the desert"):
        prompt(page).fill(text)
        page.get_by_text(f"{len(text.split())} / 75 tokens").wait_for()
        prompt(page).blur()
        page.wait_for_timeout(500)
    places = page.evaluate("[...window.places]")
    assert max(places) - min(places) <= 1, places


def test_keys_weigh_a_word_and_undo_takes_it_back(open_page):
    page = open_page()
    prompt(page).press_sequentially("a red house")
    for _ in range(2):
        page.keyboard.press("Control+ArrowUp")
    expect(prompt(page)).to_have_value("a red (house:1.2)")
    expect(
        page.get_by_text("Emphasis").or_(page.get_by_text("house ×")).or_(page.get_by_text("1.2")).first
    ).to_be_visible()
    page.keyboard.press("Control+z")
    expect(prompt(page)).to_have_value("a red (house:1.1)")
    page.keyboard.press("Control+ArrowDown")
    expect(prompt(page)).to_have_value("a red house")


def test_names_are_completed_by_keys_and_mouse(open_page):
    page = open_page()
    field = prompt(page)
    field.press_sequentially("a house <pa")
    expect(options(page)).to_have_count(1)
    expect(options(page).first).to_contain_text("trigger words: papercut, ink wash")
    expect(page.get_by_role("combobox", name="Prompt", exact=True)).to_have_attribute("aria-expanded", "true")
    page.keyboard.press("Enter")
    expect(field).to_have_value("a house <lora:paper-cut:1>")
    field.press_sequentially(", pap")
    expect(options(page)).to_have_text(["papercuttrigger word of paper-cut"])
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Tab")
    expect(field).to_have_value("a house <lora:paper-cut:1>, papercut")
    field.press_sequentially(", __")
    expect(options(page)).to_have_text(["animals/cat", "colour"])
    page.keyboard.press("Escape")
    expect(options(page)).to_have_count(0)
    field.press_sequentially("co")
    options(page).first.click()
    expect(field).to_have_value("a house <lora:paper-cut:1>, papercut, __colour__")
    expect(field).to_be_focused()
    field.press_sequentially(" in the\nea")
    expect(options(page)).to_have_text(["easynegembedding"])
    page.keyboard.press("Enter")  # none is chosen, so this is a new line
    expect(field).to_have_value(re.compile("ea\n$"))
    assert page.evaluate("document.querySelector('[popover]:popover-open')") is None


def test_ctrl_enter_paints_what_was_just_typed_and_it_is_remembered(open_page, request, outputs):
    page = open_page()
    request.node.painting = [page]
    set_slider(page, "Steps", 1)
    prompt(page).press_sequentially("a blue tent")
    page.keyboard.press("Control+Enter")
    finished(page).wait_for()
    newest = max(outputs.rglob("*.png"), key=lambda path: path.stat().st_mtime_ns)
    assert picture_files.read_parameters(newest).prompt == "a blue tent"
    prompt(page).fill("something else")
    page.keyboard.press("Alt+ArrowUp")
    expect(prompt(page)).to_have_value("a blue tent")
    page.keyboard.press("Alt+ArrowDown")
    expect(prompt(page)).to_have_value("something else")
    page.get_by_role("button", name="Earlier").first.click()
    options(page).filter(has_text="a blue tent").first.click()
    expect(prompt(page)).to_have_value("a blue tent")


def test_texts_from_elsewhere_show_and_what_is_typed_stays(open_page):
    page = open_page()
    page.get_by_role("button", name="a yellow tent").click()
    expect(prompt(page)).to_have_value(re.compile("^a yellow tent"))
    prompt(page).press_sequentially(", at noon")
    page.get_by_label("Negative prompt", exact=True).fill("rain")
    page.get_by_role("link", name="Inpaint").click()  # at once: what is typed must arrive before the page has gone
    page.get_by_text("Mask settings").wait_for()
    expect(prompt(page)).to_have_value(re.compile("^a yellow tent.*, at noon$"))
    expect(page.get_by_label("Negative prompt", exact=True)).to_have_value("rain")
    page.get_by_role("link", name="Text to image").click()
    page.get_by_role("button", name="a white lighthouse").click()
    expect(prompt(page)).to_have_value(re.compile("^a white lighthouse"))


def test_what_is_typed_is_painted_when_typing_pauses(open_page, request, outputs):
    page = open_page()
    request.node.painting = [page]
    set_slider(page, "Steps", 2)
    prompt(page).fill("a red house")
    page.keyboard.press("Control+Enter")
    finished(page).wait_for()
    before = len(list(outputs.rglob("*.png")))
    page.get_by_text("Paint while you type").click()
    sketch = page.get_by_role("img", name=re.compile("^Sketch, seed"))
    sketch.wait_for()
    first = sketch.get_attribute("src")
    prompt(page).press_sequentially(" by the sea")  # nothing else is pressed
    page.wait_for_function(
        "([sketch, first]) => !sketch.isConnected || sketch.src !== first", arg=[sketch.element_handle(), first]
    )
    expect(prompt(page)).to_be_focused()
    expect(prompt(page)).to_have_value("a red house by the sea")
    assert len(list(outputs.rglob("*.png"))) == before
    page.get_by_role("button", name="Keep this one").click()
    expect(page.get_by_text(re.compile("^Saved as"))).to_be_visible()
    newest = max(outputs.rglob("*.png"), key=lambda path: path.stat().st_mtime_ns)
    assert picture_files.read_parameters(newest).prompt == "a red house by the sea"


def test_composition_sends_and_offers_nothing_half(open_page):
    page = open_page()
    field = prompt(page)
    field.focus()
    session = page.context.new_cdp_session(page)
    session.send("Input.imeSetComposition", {"text": "ea", "selectionStart": 2, "selectionEnd": 2})
    expect(field).to_have_value("ea")
    expect(options(page)).to_have_count(0)
    session.send("Input.insertText", {"text": "家"})
    expect(field).to_have_value("家")


@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (1280, "dark")])
def test_what_is_offered_stands_out(open_page, width, scheme):
    page = open_page(width=width, scheme=scheme)
    page.get_by_role("button", name="Keys").first.click()
    prompt(page).press_sequentially("a house <")
    expect(options(page)).to_have_count(2)
    assert faint(page) == {}
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
