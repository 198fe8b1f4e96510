"""What the Inpaint page asks beside the prompts: a picture, a mask painted over it, and how the mask is used."""

import streamlit as st

from webui import values
from webui.components import form, mask_painter
from webui.masks import AREAS, CONTENTS, MODES


def draw() -> None:
    """Draw the picture to paint over and the settings of the mask."""
    if form.uploader() is None:
        return
    mask_painter.draw()
    left, right = st.columns(2, gap="medium")
    with left:
        form.strength_slider()
    with right:
        _choice(
            "Masked content",
            "masked_content",
            CONTENTS,
            "What the steps begin with under the mask: the picture as it is, noise, or the colours around it.",
        )
    with st.expander("Mask settings"):
        _settings()


def _settings() -> None:
    _choice("Mask mode", "mask_mode", MODES, "Which part is painted anew.")
    st.slider(
        "Mask blur",
        *values.WHOLE["mask_blur"],
        key="mask_blur",
        help="How softly, in pixels, the new passes into the old at the edge of the mask.",
        persist_state="session",
    )
    area = _choice(
        "Inpaint area",
        "inpaint_area",
        AREAS,
        "Only masked: the part around the mask is painted at the full size that is set, and put back smaller. "
        "It has finer details, and knows less of the rest.",
    )
    st.slider(
        "Padding",
        *values.WHOLE["mask_padding"],
        key="mask_padding",
        help="How many pixels around the mask are looked at.",
        disabled=area != "masked",
        persist_state="session",
    )


def _choice(label: str, key: str, titles: dict[str, str], help: str) -> str:
    chosen = st.segmented_control(
        label,
        list(titles),
        key=key,
        required=True,
        format_func=titles.__getitem__,
        help=help,
        persist_state="session",
    )
    return chosen or st.session_state[key]
