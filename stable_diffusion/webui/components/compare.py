"""Before and after: two pictures over each other, parted by a line to move; compare.js is the browser's side."""

from pathlib import Path

import streamlit as st

_html, _css, _js = (Path(__file__).with_suffix(kind).read_text(encoding="utf-8") for kind in (".html", ".css", ".js"))
_compare = st.components.v2.component("compare", html=_html, css=_css, js=_js)


def draw(
    before: str, after: str, size: tuple[int, int], alt: str, key: str, titles: tuple[str, str] = ("Before", "After")
) -> None:
    """Draw both, given as addresses (data URLs), in the shape of `size`, (width, height), under their `titles`."""
    shape = {"width": size[0], "height": size[1]}
    _compare(
        key=key,
        data={"before": before, "after": after, "alt": alt, "titles": titles, **shape},
        height="content",
    )
