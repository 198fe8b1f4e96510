"""A picture to paint a mask over, at the picture's own size; mask_painter.js is the browser's side.

The mask comes back as a part of the component's state, so it travels with every click (Generate's too), whichever
comes first. It is kept beside the picture in the session, whatever page is shown.
"""

import contextlib
from pathlib import Path

import streamlit as st
from PIL import Image

from stable_diffusion.errors import StableDiffusionError
from stable_diffusion.service.masks import Painting, check, check_paintable, shown, url_of
from stable_diffusion.service.preview import data_url
from stable_diffusion.webui.components import session

KEY = "mask_painter"
_html, _css, _js = (Path(__file__).with_suffix(kind).read_text(encoding="utf-8") for kind in (".html", ".css", ".js"))
_painter = st.components.v2.component(KEY, html=_html, css=_css, js=_js)


def painting() -> Painting | None:
    """The input picture and its mask so far; None without a picture.

    Raises PictureError if the picture is too large, or the browser sent something that is not its mask.
    """
    picture: Image.Image | None = st.session_state.get("input_picture")
    if picture is None:
        return None
    check_paintable(picture.size)
    found: Painting | None = st.session_state.get("painting")
    if found is None or found.picture is not picture:
        found = st.session_state["painting"] = Painting(picture)
    found.receive((st.session_state.get(KEY) or {}).get("painted"))
    return found


def mask() -> Image.Image:
    """The mask to generate with. Raises InputError if nothing is left to change, PictureError as `painting` does."""
    found = painting()
    return check(found.mask if found is not None else None, st.session_state["invert"])


def draw() -> None:
    """Draw the picture and the tools.

    This is not a fragment: a stroke and a click on Generate may come in one message, and that runs one fragment or all.
    """
    try:
        found = painting()
    except StableDiffusionError as error:
        st.error(session.plain(str(error)), icon=":material/error:")
        found = st.session_state.get("painting")
        if found is None or found.picture is not st.session_state.get("input_picture"):
            return
    if found is None:
        return
    width, height = found.picture.size
    _painter(
        key=KEY,
        data={
            "token": found.token,
            "width": width,
            "height": height,
            "picture": data_url(_shown(found)),
            "mask": url_of(found.mask),
            "turn": found.turn,
        },
        on_painted_change=_take,
    )


def _take() -> None:
    """Receive the mask even if the next page has no painter; `draw` reports errors."""
    with contextlib.suppress(StableDiffusionError):
        painting()


def _shown(found: Painting) -> bytes:
    kept = st.session_state.get("painting_shown")
    if kept is None or kept[0] is not found.picture:
        kept = st.session_state["painting_shown"] = (found.picture, shown(found.picture))
    return kept[1]
