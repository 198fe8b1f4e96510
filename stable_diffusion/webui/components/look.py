"""A style sheet for what the theme in streamlit.toml cannot say."""

import streamlit as st

# The dark theme's colour is light, to be read as text on dark grey; on buttons and on what is chosen from a list
# Streamlit writes white, which needs a dark one. The hint of a shortcut is half transparent there, and a grey badge is
# grey on grey: too faint. The live panel stays in sight beside a long form. In the gallery a click anywhere on a small
# picture opens the large one; the button that would show the small one blown up is gone.
STYLE = """<style>
[data-testid="stBaseButton-primary"]:not(:disabled) { background: #3b5bdb; border-color: #3b5bdb; color: #ffffff; }
[data-testid="stBaseButton-primary"]:not(:disabled):hover { background: #364fc7; border-color: #364fc7; }
[data-testid="stMultiSelect"] [data-tag] { background: #3b5bdb; color: #ffffff; }
[data-testid^="stBaseButton"]:not(:disabled) kbd { opacity: 1; color: inherit; }
.stMarkdownBadge { color: inherit !important; }
@media (min-width: 641px) {
    [data-testid="stColumn"]:has(.st-key-live) { position: sticky; top: 4.5rem; align-self: flex-start; }
}
.st-key-gallery_cards [data-testid="stElementToolbar"] { display: none; }
.st-key-gallery_cards > * { position: relative; }
.st-key-gallery_cards [class*="st-key-open-"] { position: static; }
.st-key-gallery_cards [class*="st-key-open-"] button::after { content: ""; position: absolute; inset: 0; }
</style>"""


def draw() -> None:
    """Add the style sheet to the page; it takes no space."""
    st.html(STYLE)
