"""The field for a prompt: with weights by keys, completion and earlier prompts; or Streamlit's own, which has none.

`prompt_field` decides which. Either way the text is `key` in the session's state, where anyone may set it.
prompt_field.js is the browser's side, with prompt_weights.js and prompt_completion.js.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import streamlit as st

from stable_diffusion.errors import StableDiffusionError
from stable_diffusion.service import prompt_words
from stable_diffusion.webui.components import browse, prompt_texts, session

VARIABLE, PLAIN = "STABLE_DIFFUSION_PROMPT_FIELD", "plain"
HELP = "Ctrl+Up and Ctrl+Down weigh a word, < and __ offer LoRAs and wildcards, Alt+Up recalls earlier prompts."
ROW_HEIGHT, EDGES = 22, 20  # pixels
LISTED_AGE = 5.0  # seconds
PAINTED, MAX_PAINTED = "painted_prompts", 30


def _read(*names: str) -> str:
    return "\n".join(Path(__file__).with_name(name).read_text(encoding="utf-8") for name in names)


_field = st.components.v2.component(
    "prompt_field",
    html=_read("prompt_field.html"),
    css=_read("prompt_field.css"),
    js=_read("prompt_weights.js", "prompt_completion.js", "prompt_field.js"),
    isolate_styles=False,
)
_words = st.components.v2.component("prompt_words", js=_read("prompt_words.js"))


def prompt_field(
    label: str, key: str, *, placeholder: str = "", rows: int = 2, live: bool = False, disabled: bool = False
) -> None:
    """Draw the field whose text is `key` in the session's state.

    The page gets the text when the field is left and with Ctrl+Enter; if `live`, also when typing pauses.
    """
    if os.environ.get(VARIABLE) == PLAIN:
        st.text_area(
            label,
            key=key,
            height=rows * ROW_HEIGHT + EDGES + 2,
            placeholder=placeholder,
            disabled=disabled,
            persist_state="session",
        )
        return
    turn, text = prompt_texts.known(key)
    _field(
        key=prompt_texts.field(key),
        data={
            "key": key,
            "earlier": "negative" if "negative" in key else "prompt",
            "label": label,
            "value": text,
            "turn": turn,
            "placeholder": placeholder,
            "help": HELP,
            "rows": rows,
            "live": live,
            "disabled": disabled,
        },
        on_typed_change=lambda: prompt_texts.take(key),
    )


def offer_words() -> None:
    """Let the fields of this page complete what is here, and recall what was painted before; takes no space."""
    if os.environ.get(VARIABLE) != PLAIN:
        earlier = prompt_words.earlier([*st.session_state.get(PAINTED, []), *_past()])
        _words(key="prompt_words", data=_listed() | {"earlier": earlier}, height=1)


def remember(prompt: str, negative: str) -> None:
    """Remember the prompts of a picture that is asked for."""
    state = st.session_state
    before = [each for each in state.get(PAINTED, []) if each != (prompt, negative)]
    state[PAINTED] = [(prompt, negative), *before][:MAX_PAINTED]


@st.cache_resource(ttl=LISTED_AGE, show_spinner=False)
def _listed() -> dict[str, Any]:
    return prompt_words.listed()


@st.cache_resource(ttl=LISTED_AGE, show_spinner=False)
def _past() -> list[tuple[str, str]]:
    try:
        return prompt_words.past(browse.the_gallery(), session.presets_file())
    except (StableDiffusionError, OSError):  # the gallery itself says it
        return []
