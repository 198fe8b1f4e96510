"""An SVG whose parts can be clicked or chosen by keyboard; clickable_drawing.js is the browser's side."""

from pathlib import Path

import streamlit as st

_css, _js = (Path(__file__).with_suffix(kind).read_text(encoding="utf-8") for kind in (".css", ".js"))
_drawing = st.components.v2.component("clickable_drawing", html="<div class='drawing'></div>", css=_css, js=_js)


def draw(svg: str, alt: str, key: str) -> str | None:
    """Draw it, and return the `data-lesson` of what was clicked just now, or None."""
    clicked = _drawing(key=key, data={"svg": svg, "alt": alt}, on_lesson_change=lambda: None)
    return clicked.get("lesson")
