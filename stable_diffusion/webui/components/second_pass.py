"""Hires fix on the page: whether there is a second pass, to which size, and how it paints."""

import streamlit as st

from stable_diffusion.errors import InputError
from stable_diffusion.hires import Hires
from stable_diffusion.hires_upscalers import upscaler_names
from stable_diffusion.request import GRID
from stable_diffusion.sampler import sampler_names
from stable_diffusion.service import values
from stable_diffusion.webui.components import fields, session

TARGET = ("hires_scale", "hires_width", "hires_height")
USUAL_SCALE = 2.0


def draw() -> None:
    """Draw the switch and, if it is on, the settings of the second pass."""
    state = st.session_state
    state["hires"] = any(state[name] for name in TARGET)
    st.toggle(
        "Hires fix",
        key="hires",
        on_change=_switch,
        help="Paint at the size above, where composition works best, then enlarge that and paint over it in a second "
        "pass, for detail.",
    )
    if not state["hires"]:
        return
    if not state["hires_scale"]:
        state["hires_scale"] = USUAL_SCALE  # without effect next to a target in pixels
    with st.container(border=True):
        left, right = st.columns(2)
        with left:
            fields.select("hires_upscaler", {name: name for name in _upscalers()})
            fields.slider("hires_strength")
            fields.number("hires_width", step=GRID)
        with right:
            fields.slider("hires_scale", disabled=bool(state["hires_width"] or state["hires_height"]))
            fields.slider("hires_steps", step=1)
            fields.number("hires_height", step=GRID)
        st.caption(sizes_in_words())
        with st.expander("Its own sampler and prompts"):
            left, right = st.columns(2)
            with left:
                fields.select("hires_sampler", {"": "As above", **sampler_names()})
            with right:
                fields.slider("hires_cfg", step=0.5)
            fields.area("hires_prompt", placeholder="as above")
            fields.area("hires_negative", placeholder="as above")


def sizes_in_words() -> str:
    """Say how large the picture becomes, or why it cannot."""
    state = st.session_state
    first = state["width"], state["height"]
    width, height = state["hires_width"] or None, state["hires_height"] or None
    try:
        enlarged, target = Hires(state["hires_scale"], width, height).sizes(first, GRID)
    except InputError as error:
        return session.plain(str(error))
    cropped = "" if enlarged == target else f", cropped from {enlarged[0]} × {enlarged[1]}"
    return f"{first[0]} × {first[1]} becomes {target[0]} × {target[1]}{cropped}."


def _upscalers() -> list[str]:
    """What there is, and what a picture or preset asked for even if it is not here."""
    return list(dict.fromkeys([*upscaler_names(), st.session_state["hires_upscaler"]]))


def _switch() -> None:
    if st.session_state["hires"]:
        st.session_state["hires_scale"] = USUAL_SCALE
    else:
        st.session_state.update({name: values.FORM[name].unset for name in TARGET})
