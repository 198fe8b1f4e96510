"""The page and two clients of its HTTP API at once: each is given what it would be given alone."""

import base64
import io
import threading

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("playwright.sync_api")
from playwright.sync_api import expect

from stable_diffusion import StableDiffusion
from stable_diffusion.record import picture_files
from tests.browser.conftest import PATIENCE

openai = pytest.importorskip("openai")
webuiapi = pytest.importorskip("webuiapi")

pytestmark = pytest.mark.browser
expect.set_options(timeout=PATIENCE)

BY_CLIENT, BY_PAGE = "a red house by day", "a blue sailboat at night"
CLIENTS, STEPS, CFG = 4, 3, 5.0


def picture(encoded):
    return Image.open(io.BytesIO(base64.b64decode(encoded)))


def test_the_page_and_two_clients_paint_at_once(open_page, server, outputs):
    web = webuiapi.WebUIApi(baseurl=f"{server}/sdapi/v1", sampler="Euler", steps=STEPS)
    ai = openai.OpenAI(base_url=f"{server}/v1", api_key="none", max_retries=0)
    sd = StableDiffusion()
    width, height = sd.default_size
    size, settings = f"{width}x{height}", {"seed": 7, "steps": STEPS, "cfg_scale": CFG, "sampler": "euler"}
    found = []

    def by_a1111():
        asked = {"prompt": BY_CLIENT, "seed": 7, "cfg_scale": CFG, "width": width, "height": height}
        found.append(web.txt2img(**asked).image)

    def by_openai():
        answer = ai.images.generate(model="", prompt=BY_CLIENT, size=size, extra_body=settings)
        found.append(picture(answer.data[0].b64_json))

    page = open_page()
    page.get_by_label("Prompt", exact=True).fill(BY_PAGE)
    threads = [threading.Thread(target=call) for call in (by_a1111, by_openai) * (CLIENTS // 2)]
    for thread in threads:
        thread.start()
    page.get_by_role("button", name="Generate").click()
    expect(page.get_by_role("button", name="Download").first).to_be_visible()
    for thread in threads:
        thread.join(PATIENCE / 1000)

    (alone,) = sd.generate(BY_CLIENT, num_steps=STEPS, cfg_weight=CFG, seed=7, sampler="euler")
    assert len(found) == CLIENTS
    for image in found:
        np.testing.assert_array_equal(image.convert("RGB"), alone.image)
    with page.expect_download() as download:
        page.get_by_role("button", name="Download").first.click()
    record = picture_files.read_parameters(download.value.path())
    (again,) = sd.generate(
        BY_PAGE, record.negative, num_steps=record.steps, cfg_weight=record.cfg, seed=record.seed,
        sampler=record.sampler, width=record.width, height=record.height,
    )  # fmt: skip
    np.testing.assert_array_equal(Image.open(download.value.path()).convert("RGB"), again.image)
    saved = [picture_files.read_parameters(path).prompt for path in outputs.rglob("*.png")]
    assert saved.count(BY_CLIENT) == CLIENTS and saved.count(BY_PAGE) == 1, "all are in one gallery"
