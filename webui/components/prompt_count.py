"""The token count under a prompt, while it is typed: Streamlit itself hears of a text only when its field is left."""

import streamlit as st

from webui import tokens
from webui.components import session
from webui.values import with_default

# Tells of the text in the field with this label, a moment after the last key.
LISTENER = """
export default function ({ data, parentElement, setStateValue }) {
    const field = document.querySelector(`textarea[aria-label="${data.label}"]`)
    if (!field) return
    let timer
    const tell = () => {
        clearTimeout(timer)
        timer = setTimeout(() => {
            if (field.value !== parentElement.told) setStateValue("text", parentElement.told = field.value)
        }, 250)
    }
    field.addEventListener("input", tell)
    if (parentElement.told !== undefined) tell() // what was typed while this was drawn anew
    return () => {
        clearTimeout(timer)
        field.removeEventListener("input", tell)
    }
}
"""
_listen = st.components.v2.component("prompt_listener", js=LISTENER)


@st.fragment
def draw(label: str, key: str, added: str = "") -> None:
    """Draw the count of the text field `label`, whose value is `key` in the session's state, and of `added`."""
    with st.container(gap=None):
        place = st.empty()
        listener = _listen(key=f"typed-{key}", data={"label": label}, on_text_change=lambda: None, height=1)
    text = _newest(f"counted-{key}", st.session_state.get(key) or "", getattr(listener, "text", None))
    counted = tokens.count(session.chosen_model(), with_default(text, added))
    words = session.plain(counted.words)
    place.caption(f":material/warning: {words}" if counted.cut_off else words)


def _newest(memory: str, committed: str, typed: str | None) -> str:
    """Of the text that Streamlit knows and the one that the listener told of, whichever changed last."""
    before = st.session_state.get(memory, (None, None, committed))
    text = before[2]
    if committed != before[0]:
        text = committed
    elif typed is not None and typed != before[1]:
        text = typed
    st.session_state[memory] = (committed, typed, text)
    return text
