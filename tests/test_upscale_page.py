"""The page that enlarges, without a browser: what is sent to it, what its button queues, what it says."""

import io
from pathlib import Path

import pytest
from PIL import Image

st = pytest.importorskip("streamlit")
from streamlit.testing.v1 import AppTest  # noqa: E402

from stable_diffusion.record import picture_files  # noqa: E402
from stable_diffusion.record.parameters import Parameters  # noqa: E402
from stable_diffusion.service import shared  # noqa: E402
from stable_diffusion.service.upscaling import Source  # noqa: E402
from stable_diffusion.webui.components import browse  # noqa: E402
from tests.pretend import PretendEngine, over  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
UPSCALE, GALLERY = (f"stable_diffusion/webui/pages/{name}.py" for name in ("upscale", "gallery"))


@pytest.fixture
def outputs(monkeypatch, tmp_path):
    monkeypatch.setenv("STABLE_DIFFUSION_OUTPUTS", str(tmp_path / "outputs"))
    PretendEngine().install(monkeypatch)
    shared.close()
    st.cache_resource.clear()
    yield tmp_path / "outputs"
    shared.close()
    browse.the_gallery().close()
    st.cache_resource.clear()


def picture(size=(16, 12)) -> bytes:
    return picture_files.encoded(Image.new("RGB", size, "teal"), ".png", Parameters("a house", seed=7, steps=2))


def open_page(path=UPSCALE, given: Source | None = None):
    page = AppTest.from_file(str(ROOT / "app.py"), default_timeout=30)
    page.run()
    page.switch_page(path)
    if given is not None:
        page.session_state["upscale_given"] = given
    page.run()
    assert not page.exception
    return page


def labelled(elements, label):
    (found,) = [element for element in elements if element.label == label]
    return found


def finish(page):
    over(page.session_state["upscale_work"].task)
    page.run()
    assert not page.exception
    return page.session_state["upscale_work"]


def test_without_a_picture_nothing_can_be_started(outputs):
    page = open_page()
    assert labelled(page.button, "Upscale").disabled
    assert labelled(page.selectbox, "Upscaler").value == "realesr-animevideov3"


def test_a_picture_that_was_sent_is_enlarged_and_saved(outputs):
    page = open_page(given=Source("a.png", picture()))
    assert any("64 × 48" in caption.value for caption in page.caption)
    labelled(page.slider, "Factor").set_value(2.0).run()
    labelled(page.button, "Upscale").click().run()
    work = finish(page)
    (result,) = work.results
    assert result.size == (32, 24) and result.path.is_relative_to(outputs)
    assert picture_files.read_parameters(result.path).prompt == "a house"
    assert any("32 × 24" in caption.value for caption in page.caption)


def test_a_size_and_a_second_upscaler(outputs):
    page = open_page(given=Source("a.png", picture()))
    labelled(page.button_group, "How far").set_value("To a size").run()
    labelled(page.number_input, "Target width").set_value(40)
    labelled(page.number_input, "Target height").set_value(40)
    labelled(page.toggle, "Crop to exactly this size").set_value(True)
    labelled(page.selectbox, "Second upscaler").set_value("Lanczos").run()
    labelled(page.button, "Upscale").click().run()
    (result,) = finish(page).results
    assert result.size == (40, 40)
    said = picture_files.read_parameters(result.path).extra
    assert (said["Postprocess upscaler 2"], said["Postprocess upscaler 2 visibility"]) == ("Lanczos", "0.5")


def test_a_file_that_is_no_picture_is_refused(outputs):
    page = open_page(given=Source("*a*.png", b"no picture"))
    assert any("is not a picture" in error.value for error in page.error)
    assert labelled(page.button, "Upscale").disabled


def test_the_gallery_sends_a_picture(outputs):
    picture_files.save_new_picture(Image.open(io.BytesIO(picture())), outputs / "2026-03-01", Parameters("a", seed=1))
    page = open_page(GALLERY)
    entry = browse.the_gallery().page(browse.Query(), 1).entries[0]
    page.query_params["picture"] = entry.id
    page.run()
    labelled(page.button, "Upscale").click().run()
    assert page.session_state["upscale_given"].name == entry.name
