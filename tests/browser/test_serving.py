"""The page for other machines, in a real Chromium: through a reverse proxy, below a base path, with a password."""

import base64
import io
from urllib.parse import urlsplit

import pytest
from PIL import Image

pytest.importorskip("playwright.sync_api")
from playwright.sync_api import expect

from tests.browser.conftest import PATIENCE
from tests.serving import Proxy, served, status

pytestmark = pytest.mark.browser
expect.set_options(timeout=PATIENCE)

SECRET = "correct horse"
BASIC = "Basic " + base64.b64encode(f":{SECRET}".encode()).decode()


@pytest.fixture(scope="module")
def port(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    command = ["stable_diffusion", "page", "--listen", "127.0.0.1", "--allow-host", "pictures.localhost"]
    with served(
        folder, *command, "--server.baseUrlPath", "sd", health="/sd/_stcore/health",
        headers={"Authorization": BASIC},
        environment={"STABLE_DIFFUSION_PASSWORD": SECRET, "STABLE_DIFFUSION_OUTPUTS": str(folder / "outputs")},
    ) as (port, _):  # fmt: skip
        yield port


@pytest.fixture(scope="module")
def proxy(port):
    with Proxy(port, Host=f"localhost:{port}") as proxy:
        yield proxy


@pytest.fixture
def server(proxy):
    return f"http://pictures.localhost:{proxy.port}"


def encoded():
    file = io.BytesIO()
    Image.new("RGB", (128, 128), "green").save(file, "PNG")
    return file.getvalue()


def sign_in(page, secret=SECRET):
    page.get_by_label("Password").fill(secret)
    page.get_by_role("button", name="Sign in").click()


def test_a_picture_is_painted_and_uploaded_through_a_proxy_after_signing_in(open_page, proxy):
    # The first request of all is for a page below the base path: it must not run without its entry script.
    page = open_page("sd/image_to_image", ready="Password", width=390, scheme="dark")
    sign_in(page, "a wrong guess")
    expect(page.get_by_role("alert")).to_have_text("Wrong password.")
    sign_in(page)
    page.get_by_label("Prompt", exact=True).fill("a red house on green hills")
    assert page.url.endswith("/sd/image_to_image")
    page.locator("input[type=file]").first.set_input_files(
        {"name": "green.png", "mimeType": "image/png", "buffer": encoded()}
    )
    expect(page.get_by_alt_text("The input picture")).to_be_visible()
    page.get_by_role("button", name="Generate").click()
    picture = page.get_by_alt_text("Finished picture").first
    expect(picture).to_be_visible()
    assert picture.evaluate("(shown) => shown.complete && shown.naturalWidth") == 128
    address = urlsplit(picture.evaluate("(shown) => shown.src"))
    assert status(proxy.port, address.path, Host=address.netloc) == 401, "pictures are not for everybody"


def test_a_name_that_is_not_allowed_is_named_on_the_page(open_page, server):
    foreign = server.replace("pictures.", "other.")
    said = "does not answer pages of 'other.localhost'. If it should, start it with --allow-host other.localhost"
    page = open_page("sd", ready="Password")
    page.goto(f"{foreign}/sd/")  # a name that the proxy knows, but the server does not
    sign_in(page)
    expect(page.get_by_text(said)).to_be_visible()
    page.context.set_extra_http_headers({"Authorization": BASIC})
    page.goto(f"{foreign}/sd/")
    expect(page.get_by_text(said)).to_be_visible()
    page.foreign.clear()
