"""Every lesson in a browser: it shows something without an error, and its first control changes what it shows."""

from pathlib import Path

import pytest
from playwright.sync_api import expect

from stable_diffusion.commands.page import settings
from stable_diffusion.lessons import lesson as blocks
from stable_diffusion.lessons.chapters import LESSONS

from .conftest import PATIENCE, serve

pytestmark = pytest.mark.browser
QUIET = '[data-testid="stApp"][data-test-script-state="notRunning"]'
# Pictures, charts, drawings and sentences; not the controls, whose own look changes anyway.
CONTENT = """() => {
    const main = document.querySelector('[data-testid="stMain"]')
    const found = [...main.querySelectorAll('img')].map(each => each.src)
    found.push(...[...main.querySelectorAll('canvas')].map(each => each.toDataURL()))
    found.push(...[...main.querySelectorAll('[data-testid="stMarkdown"], svg')].map(each => each.innerHTML))
    for (const each of main.querySelectorAll('*'))
        if (each.shadowRoot) found.push(each.shadowRoot.innerHTML)
    return JSON.stringify(found)
}"""


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lessons")
    script = Path(__file__).with_name("quick_page.py")
    program = ("-m", "streamlit", "run", str(script), *settings([]))
    with serve(folder, folder / "log", {"HF_HUB_OFFLINE": "1"}, program, "--server.port") as found:
        yield found


@pytest.fixture(scope="module")
def page(browser):
    context = browser.new_context(viewport={"width": 1280, "height": 1600})
    context.set_default_timeout(PATIENCE)
    yield context.new_page()
    context.close()


def shown(main, control):
    """What a control is moved by: a slider's thumb, another choice than the usual one, a list, a field."""
    if isinstance(control, blocks.Slider):
        return main.get_by_role("group", name=control.label, exact=True).get_by_role("slider")
    if isinstance(control, blocks.Words):
        return main.get_by_label(control.label, exact=True)
    found = main.get_by_role("combobox", name=control.label)
    for other in getattr(control, "options", ()):
        if other != control.value:
            found = found.or_(main.get_by_role("radio", name=str(other), exact=True))
    return found.first


def move(page, found, control):
    """Move it as a person does, with a mouse or keys."""
    if isinstance(control, blocks.Slider):
        found.press("End" if control.value < (control.low + control.high) / 2 else "Home")
    elif isinstance(control, blocks.Words):
        found.fill("noise")
        found.press("ControlOrMeta+Enter" if control.lines else "Enter")
    elif found.get_attribute("role") == "combobox":
        found.press("ArrowDown")
        page.get_by_role("option", selected=False).first.click()
    else:
        found.click()


@pytest.mark.parametrize("key", [key for key, lesson in LESSONS.items() if lesson.views])
def test_a_control_changes_what_a_lesson_shows(address, page, key):
    lesson = LESSONS[key]
    following = page.get_by_role("button", name=f"Next: {lesson.title}", exact=True)
    if following.count():
        following.click()  # faster than to open the page anew
    else:
        page.goto(f"{address}/how_it_works?lesson={key}")
    main = page.get_by_test_id("stMain")
    expect(main.get_by_role("heading", name=lesson.title, exact=True)).to_be_visible(timeout=PATIENCE)
    control = shown(main, lesson.views[0])
    control.wait_for()
    expect(page.get_by_role("alert")).to_have_count(0)
    page.wait_for_selector(QUIET)
    before = page.evaluate(CONTENT)
    move(page, control, lesson.views[0])
    page.wait_for_function(f"before => ({CONTENT})() !== before", arg=before)
    expect(page.get_by_role("alert")).to_have_count(0)


def test_a_lesson_begins_at_its_top(address, page):
    page.set_viewport_size({"width": 1280, "height": 500})
    lesson, other = list(LESSONS.values())[1:3]
    page.goto(f"{address}/how_it_works?lesson={lesson.key}")
    for title, button in ((other.title, "Next"), (lesson.title, "Back"), (other.title, "Next")):
        page.get_by_role("button", name=f"{button}: {title}", exact=True).click()  # at the foot, below what is shown
        expect(page.get_by_role("heading", name=title, exact=True)).to_be_visible(timeout=PATIENCE)
        page.wait_for_selector(QUIET)
        page.wait_for_timeout(500)
        assert page.evaluate("""document.querySelector('[data-testid="stMain"]').scrollTop""") == 0
