"""Large pictures on the page: the input picture enlarged, and painted over in tiles."""

import streamlit as st

from stable_diffusion.request import GRID, Request
from stable_diffusion.upscaling import upscalers
from stable_diffusion.webui.components import fields

FACTORS = (1.5, 2.0, 3.0, 4.0)


def draw() -> None:
    """Draw by how much the picture is enlarged, by what, and the tiles in which it is painted."""
    state = st.session_state
    with st.expander("Enlarge, and paint in tiles", expanded=bool(state["by"] or state["tile"])):
        left, right = st.columns(2)
        known = dict.fromkeys([0.0, *FACTORS, state["by"]])
        with left:
            fields.select("by", {each: f"{each:g} ×" if each else "No" for each in known})
            fields.number("tile", step=64)
        with right:
            names = dict.fromkeys([*(each.name for each in upscalers.all()), state["upscaler"]])
            fields.select("upscaler", {name: name for name in names}, disabled=not state["by"])
            fields.number("tile_overlap", step=GRID, disabled=not state["tile"])
        if words := size_in_words():
            st.caption(words)


def size_in_words() -> str:
    """Say at which size the input picture is painted if it is enlarged; nothing if it is not."""
    state = st.session_state
    picture = state.get("input_picture")
    if picture is None or not state["by"]:
        return ""
    width, height = Request(picture=picture, by=state["by"]).painted_size((0, 0))
    return (
        f"{picture.width} × {picture.height} becomes {width} × {height}. A denoising strength of 0.1 to 0.35 keeps it."
    )
