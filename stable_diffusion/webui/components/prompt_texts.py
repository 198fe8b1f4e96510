"""The texts of the prompt fields, between the session's state and the browser, where either side may change them.

A text that is set on this side gets a new token, its turn; what the browser sends counts only with the turn that it was
typed over.
"""

from __future__ import annotations

import secrets
from typing import Any

import streamlit as st

MAX_TEXT = 200_000  # characters that are taken from the browser
FIELDS = "prompt_fields"  # the keys of all fields so far


def known(key: str) -> tuple[str, str]:
    """The turn and text of a field, as the browser shall have them."""
    state = st.session_state
    state[FIELDS] = {*state.get(FIELDS, ()), key}
    text = state.setdefault(key, "")
    turn, shown = state.get(f"{key}_shown", ("", None))
    if text != shown:
        turn = secrets.token_hex(4)
        state[f"{key}_shown"] = (turn, text)
    return turn, text


def receive() -> None:
    """Take what was typed.

    Streamlit calls the fields' own callbacks after those of buttons, so whoever reads the prompts in a callback begins
    with this.
    """
    for key in st.session_state.get(FIELDS, ()):
        take(key)


def take(key: str) -> None:
    """Take what was typed into one field, unless its text has been set since."""
    state = st.session_state
    typed: Any = (state.get(field(key)) or {}).get("typed")
    turn, _ = known(key)
    if isinstance(typed, dict) and typed.get("turn") == turn and isinstance(typed.get("text"), str):
        state[key] = typed["text"][:MAX_TEXT]
        state[f"{key}_shown"] = (turn, state[key])


def field(key: str) -> str:
    """The key of the component that edits a text."""
    return f"{key}_field"
