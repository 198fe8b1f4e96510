"""Pictures as the browser gets them: with their records, whatever Streamlit does."""

import base64
import io

import numpy as np
import pytest
from PIL import Image
from streamlit.elements.lib import image_utils
from streamlit.elements.lib.layout_utils import LayoutConfig

from stable_diffusion.errors import PictureError
from stable_diffusion.record import picture_files
from stable_diffusion.record.parameters import Parameters
from stable_diffusion.service import shown

MADE = Parameters("a red mill", "fog", 20, "Euler", seed=5)


def sent(data, kind, monkeypatch):
    """The bytes that the browser gets for what `st.image` is given."""
    if isinstance(data, str):
        return base64.b64decode(data.partition(",")[2])
    taken = []

    class Runtime:
        class media_file_mgr:
            add = staticmethod(lambda data, mime, name: taken.append(data) or "/media/a")

    monkeypatch.setattr(image_utils.runtime, "exists", lambda: True)
    monkeypatch.setattr(image_utils.runtime, "get_instance", Runtime)
    image_utils.image_to_url(data, LayoutConfig(width="stretch"), False, "RGB", kind, "a")
    return taken[0]


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
@pytest.mark.parametrize("width", [64, shown.PASSED_WIDTH + 8])
def test_what_the_browser_gets_is_the_file(tmp_path, monkeypatch, suffix, width):
    path = picture_files.save_picture(Image.new("RGB", (width, 16), "red"), tmp_path / f"a{suffix}", MADE)
    assert sent(*shown.for_browser(path), monkeypatch) == path.read_bytes()
    assert sent(*shown.for_browser(path.read_bytes()), monkeypatch) == path.read_bytes()


def test_what_is_too_large_is_smaller_and_keeps_its_record(tmp_path, monkeypatch):
    monkeypatch.setattr(shown, "MAX_URL", 1000)
    noise = np.random.default_rng(0).integers(0, 255, (300, 3000, 3), np.uint8)
    path = picture_files.save_picture(Image.fromarray(noise), tmp_path / "a.png", MADE)
    data = sent(*shown.for_browser(path), monkeypatch)
    assert picture_files.read_parameters(io.BytesIO(data)) == MADE
    assert Image.open(io.BytesIO(data)).size == (1460, 146)


def test_formats_that_browsers_lack(monkeypatch):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(buffer, "TIFF")
    assert Image.open(io.BytesIO(sent(*shown.for_browser(buffer.getvalue()), monkeypatch))).format == "JPEG"


def test_what_cannot_be_read(tmp_path):
    for source in (b"", b"no picture", tmp_path / "absent.png"):
        with pytest.raises(PictureError, match="cannot be read"):
            shown.for_browser(source)
