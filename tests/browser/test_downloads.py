"""Models from the hub in a real Chromium: asked for, watched, cancelled, gone on with; the hub is one of our own."""

import re
import threading

import pytest

pytest.importorskip("playwright.sync_api")
from playwright.sync_api import expect

from stable_diffusion import catalogue
from tests.browser.conftest import PATIENCE, serve
from tests.test_hub import Hub

pytestmark = pytest.mark.browser
expect.set_options(timeout=PATIENCE)

MODEL = catalogue.find("dreamshaper-8")  # by its name here the embedded model's files are served


@pytest.fixture(scope="module")
def hub():
    hub = Hub(MODEL.source)
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    yield hub
    hub.pause = 0
    hub.shutdown()
    hub.server_close()


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("huggingface")


@pytest.fixture(scope="module")
def server(hub, home, tmp_path_factory):
    folder = tmp_path_factory.mktemp("outputs")
    own = {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    proxies = dict.fromkeys(("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), "")
    with serve(folder, folder / "log", proxies | own) as address:
        yield address


def choose(page):
    page.get_by_label("Model", exact=True).press("ArrowDown")
    page.get_by_role("option", name=re.compile(f"^{MODEL.title}")).click()


def download(page):
    page.get_by_role("button", name="Download", exact=True).click()


def test_a_model_is_asked_for_cancelled_gone_on_with_and_painted_with(open_page, hub, home):
    page = open_page()
    choose(page)
    expect(page.get_by_text("Not on this machine yet. Download 4.3 GB?")).to_be_visible()
    expect(page.get_by_text(f"Its licence: {MODEL.licence}.")).to_be_visible()
    assert page.get_by_role("link", name="Licence and model card").get_attribute("href") == f"{hub.url}/{MODEL.source}"
    assert hub.fetched == [], "nothing is fetched before somebody agrees"

    hub.status = 403  # gated
    download(page)
    expect(page.get_by_role("alert")).to_contain_text("requires its licence to be accepted")
    expect(page.get_by_role("alert")).to_contain_text(f"Its page: {hub.url}/{MODEL.source}")

    hub.status, hub.pause = 200, 0.15
    download(page)
    expect(page.get_by_text(re.compile(rf"Downloading {MODEL.source}, [1-9]\d?%"))).to_be_visible()
    page.get_by_role("button", name="Cancel download").click()
    expect(page.get_by_role("button", name="Download", exact=True)).to_be_enabled()
    begun = len(hub.fetched)
    complete = [path for path in home.rglob("snapshots/*/**/*") if path.is_file()]
    assert 0 < len(complete) == begun - 1

    hub.pause = 0
    download(page)
    expect(page.get_by_text("Not on this machine yet.")).to_have_count(0)
    expect(page.get_by_role("button", name="Cancel download")).to_have_count(0)
    assert not set(hub.fetched[: begun - 1]) & set(hub.fetched[begun:]), "what was complete is not fetched again"
    assert not list(home.rglob("*.incomplete"))

    page.get_by_label("Width").fill("128")
    page.get_by_label("Width").press("Enter")
    page.get_by_label("Height").fill("128")
    page.get_by_label("Height").press("Enter")
    steps = page.get_by_role("group", name="Steps", exact=True).get_by_role("slider")
    steps.fill("2")
    steps.press("ArrowLeft")
    page.get_by_label("Prompt", exact=True).fill("a red house")
    page.get_by_role("button", name="Generate").click()
    page.get_by_role("img", name=re.compile("^Finished picture, seed")).wait_for()


def test_an_id_is_typed_looked_up_and_downloaded(open_page, hub):
    hub.repository, hub.card = "someone/postcards", {"license": "mit"}
    page = open_page()
    page.get_by_text("Other models", exact=True).click()
    page.get_by_label("Model of the Hugging Face hub", exact=True).fill("someone/nothing")
    page.get_by_role("button", name="Look up").click()
    expect(page.get_by_role("alert")).to_contain_text("The hub has no repository 'someone/nothing'")
    page.get_by_label("Model of the Hugging Face hub", exact=True).fill(f"{hub.url}/someone/postcards")
    page.keyboard.press("Enter")
    expect(page.get_by_text("Not on this machine yet. Download 24 MB?")).to_be_visible()
    expect(page.get_by_text("Its licence: mit.")).to_be_visible()
    download(page)
    expect(page.get_by_text("Not on this machine yet.")).to_have_count(0)
    expect(page.get_by_role("button", name="Cancel download")).to_have_count(0)
    page = open_page()  # another tab lists it, too
    page.get_by_label("Model", exact=True).press("ArrowDown")
    page.get_by_role("option", name="someone/postcards", exact=True).wait_for()
