"""Train in a real browser: pictures dropped, a run that is watched, stopped and resumed, and what it learnt, used."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect

from stable_diffusion.training.postcards import painter

from .conftest import PATIENCE, serve

pytestmark = pytest.mark.browser
expect.set_options(timeout=PATIENCE)


@pytest.fixture(scope="module")
def server(outputs, tmp_path_factory):
    """A page whose runs and LoRAs are its own."""
    folder = tmp_path_factory.mktemp("train")
    environment = {"HF_HUB_OFFLINE": "1", "STABLE_DIFFUSION_HOME": str(folder)}
    environment |= {f"STABLE_DIFFUSION_{kind}": str(folder / kind.lower()) for kind in ("LORAS", "EMBEDDINGS")}
    with serve(outputs, folder / "log", environment) as address:
        yield address


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 390)])
def test_a_run_is_stopped_resumed_and_used(open_page, tmp_path, scheme, width):
    name = f"lantern-{scheme}"
    files = []
    for i, place in enumerate(("sea", "desert")):
        card = painter.Postcard("day", place, "lantern", "purple", "clear", i)
        painter.paint(card, 64).save(tmp_path / f"{i}.png")
        (tmp_path / f"{i}.txt").write_text(f"a zib lantern by the {place}")
        files += [tmp_path / f"{i}.png", tmp_path / f"{i}.txt"]
    page = open_page("train", width=width, ready="Name", scheme=scheme)
    main = page.get_by_test_id("stMain")
    main.get_by_label("Name", exact=True).fill(name)
    main.get_by_test_id("stFileUploaderDropzoneInput").set_input_files([str(file) for file in files])
    main.get_by_text("2 pictures, 2 captions").wait_for()
    main.get_by_text("Settings", exact=True).click()
    rate = main.get_by_label("Learning rate", exact=True)
    expect(rate).to_have_value("0.001")  # for a model as small as this one
    main.get_by_label("Samples", exact=True).fill("0")
    main.get_by_role("radio", name="Steps").click()
    main.get_by_label("Steps", exact=True).fill("400")
    main.get_by_role("button", name="Train", exact=True).click()
    main.get_by_role("button", name="Stop", exact=True).wait_for()
    main.get_by_text(re.compile(r": step \d+")).wait_for()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    main.get_by_role("button", name="Stop", exact=True).click()
    main.get_by_text("Stopped. Its state is kept").wait_for()
    main.get_by_text("Resume a run").click()
    more = main.get_by_label("Steps, all sessions together")
    more.fill("1")
    main.get_by_role("button", name="Resume", exact=True).click()
    main.get_by_text(f"{name} has been learnt").wait_for()
    expect(main.get_by_text(f"<lora:{name}:1>")).to_be_visible()
    with page.expect_download() as download:
        main.get_by_role("button", name="Download").click()
    assert download.value.suggested_filename == f"{name}.safetensors"
    expect(page.get_by_role("alert").filter(has_text="error")).to_have_count(0)
