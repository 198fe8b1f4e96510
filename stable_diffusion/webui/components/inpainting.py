"""The Inpaint page's own controls: a picture, a mask painted over it, and how the mask is used."""

from typing import Any

import streamlit as st

from stable_diffusion.errors import StableDiffusionError
from stable_diffusion.service import values
from stable_diffusion.service.masks import AREAS, CONTENTS, MODES, extended
from stable_diffusion.webui.components import form, mask_painter, session

SIDES = ("left", "right", "top", "bottom")
MAX_EXTENSION = 1024  # pixels on each side at a time


def picture() -> None:
    """Draw the picture to paint over."""
    if form.uploader() is not None:
        mask_painter.draw()


def settings() -> None:
    """Draw how the mask is used; each setting lives in the session's state."""
    form.strength_slider()
    with st.container(horizontal=True):
        _choice(
            "Masked content",
            "masked_content",
            CONTENTS,
            "What the masked part starts from: the picture as it is, noise, or the surrounding colours.",
        )
        only_masked = _choice(
            "Inpaint area",
            "only_masked",
            AREAS,
            "Only masked: the mask and its surroundings are painted at the full width and height, then scaled back. "
            "Finer details, but the model sees less of the rest of the picture.",
        )
    form.sizes()
    with st.expander("Mask settings"):
        _choice("Mask mode", "invert", MODES, "Which part is repainted.")
        _pixels("Mask blur", "mask_blur", "How softly new and old blend at the edge of the mask.")
        _pixels("Padding", "padding", "With Only masked: how much around the mask the model sees.", not only_masked)
    if st.session_state.get("input_picture") is not None:
        with st.expander("Extend the canvas"):
            _extension()


def _choice(label: str, key: str, titles: dict[Any, str], words: str) -> Any:
    chosen = st.segmented_control(
        label,
        list(titles),
        key=key,
        required=True,
        format_func=titles.__getitem__,
        help=words,
        persist_state="session",
    )
    return st.session_state[key] if chosen is None else chosen


def _pixels(label: str, key: str, words: str, disabled: bool = False) -> None:
    bounds = values.bounds(key)
    st.slider(label, *bounds, key=key, format="%d px", help=words, disabled=disabled, persist_state="session")


def _extension() -> None:
    st.caption("Adds pixels at the sides of the picture and masks them.")
    columns = st.columns(2) * 2
    for side, column in zip(SIDES, columns, strict=True):
        column.number_input(side.title(), 0, MAX_EXTENSION, step=8, key=f"extend_{side}", persist_state="session")
    st.button("Extend", on_click=_extend, width="stretch")
    if problem := st.session_state.pop("extend_problem", None):
        st.error(session.plain(problem), icon=":material/error:")


def _extend() -> None:
    """Replace the input picture with the larger one, its new parts masked."""
    state = st.session_state
    try:
        found = mask_painter.painting()
        if found is None:
            return
        larger = extended(found, *(int(state[f"extend_{side}"]) for side in SIDES))
    except StableDiffusionError as error:
        state["extend_problem"] = str(error)
    else:
        state.update(input_picture=larger.picture, painting=larger, **{f"extend_{side}": 0 for side in SIDES})
