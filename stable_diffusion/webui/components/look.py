"""A style sheet for what the theme in streamlit.toml cannot say, and the page's scroll position."""

import time

import streamlit as st

# The dark theme's colour is light, to be read as text on dark grey; on buttons and on what is chosen from a list
# Streamlit writes white, which needs a dark one. The hint of a shortcut is half transparent there, a grey badge is grey
# on grey, and a chosen segment under the pointer blue on blue: too faint. The live panel stays in sight beside a long
# form. In lists of cards a click anywhere on one opens it; the button that would show a small picture blown up is gone.
STYLE = """<style>
[data-testid="stBaseButton-primary"]:not(:disabled) { background: #3b5bdb; border-color: #3b5bdb; color: #ffffff; }
[data-testid="stBaseButton-primary"]:not(:disabled):hover { background: #364fc7; border-color: #364fc7; }
[data-testid="stMultiSelect"] [data-tag] { background: #3b5bdb; color: #ffffff; }
[data-testid^="stBaseButton"]:not(:disabled) kbd { opacity: 1; color: inherit; }
.stMarkdownBadge { color: inherit !important; }
button[data-variant][data-variant][data-selected][data-hovered] {
    background: color-mix(in srgb, currentColor 12%, transparent);
}
@media (min-width: 641px) {
    [data-testid="stColumn"]:has(.st-key-live) { position: sticky; top: 4.5rem; align-self: flex-start; }
}
:is(.st-key-gallery_cards, .st-key-model_cards) [data-testid="stElementToolbar"] { display: none; }
:is(.st-key-gallery_cards, .st-key-model_cards) > * { position: relative; }
:is(.st-key-gallery_cards, .st-key-model_cards) :is([class*="st-key-open-"], [class*="st-key-card-"]) {
    position: static;
}
:is(.st-key-gallery_cards, .st-key-model_cards) :is([class*="st-key-open-"], [class*="st-key-card-"]) button::after {
    content: ""; position: absolute; inset: 0;
}
.st-key-model_cards button p { text-align: start; overflow-wrap: anywhere; }
</style>"""


TO_THE_TOP = """<script>document.querySelector('[data-testid="stMain"]')?.scrollTo(0, 0) // {now}</script>"""


def draw() -> None:
    """Add the style sheet to the page; it takes no space."""
    st.html(STYLE)


def scroll_to_top() -> None:
    """Scroll the page to its top, as Streamlit does not when its content is replaced."""
    with st.sidebar:  # where it takes no space; the browser runs a script again only if its text has changed
        st.html(TO_THE_TOP.format(now=time.monotonic()), unsafe_allow_javascript=True)
