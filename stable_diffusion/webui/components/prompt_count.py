"""The row under a prompt: its token count, and what its syntax means.

It updates while one types; Streamlit itself sends a text only when its field loses focus.
"""

import streamlit as st

from stable_diffusion import prompts
from stable_diffusion.errors import StableDiffusionError
from stable_diffusion.request import Request
from stable_diffusion.service import marks, tokens
from stable_diffusion.text import dynamic
from stable_diffusion.text.wildcards import Wildcards
from stable_diffusion.webui.components import session
from stable_diffusion.webui.components.details import one_line

# Sends the text of the field with this label, a moment after the last key. It listens to the document, since the field
# may come after it.
LISTENER = """
export default function ({ data, parentElement, setStateValue }) {
    let timer
    const send = () => {
        clearTimeout(timer)
        timer = setTimeout(() => {
            const text = parentElement.field.value
            if (text !== parentElement.sent) setStateValue("text", parentElement.sent = text)
        }, 250)
    }
    const hear = ({ target }) => {
        if (!target.matches?.(`textarea[aria-label="${data.label}"]`)) return
        parentElement.field = target
        send()
    }
    document.addEventListener("input", hear)
    if (parentElement.field) send() // what was typed during a redraw
    return () => {
        clearTimeout(timer)
        document.removeEventListener("input", hear)
    }
}
"""
_listen = st.components.v2.component("prompt_listener", js=LISTENER)


MAX_MARKS = 12
MAX_EXAMPLE = 300  # characters


@st.fragment
def draw(label: str, key: str, added: str = "") -> None:
    """Draw the row of the text field `label`, whose value is `key` in the session's state, and of `added`."""
    with st.container(gap=None):
        place = st.container()  # an st.empty() would be empty for a moment, and what is below would jump
        listener = _listen(key=f"typed-{key}", data={"label": label}, on_text_change=lambda: None, height=1)
    typed = _newest(f"counted-{key}", st.session_state.get(key) or "", getattr(listener, "text", None))
    text, steps, negative = prompts.with_default(typed, added), int(st.session_state["steps"]), key == "negative"
    try:
        drawn = example(text, negative)
    except StableDiffusionError as error:
        place.error(session.plain(str(error)), icon=":material/error:")
        return
    if drawn is not None:
        text = drawn
    counted = tokens.count(session.chosen_model(), text, steps, negative)
    row = "  ".join([session.plain(counted.words), *_badges(text, steps, negative)])
    if drawn is not None:
        row = f"Drawn for every picture, such as: {session.plain(one_line(drawn, MAX_EXAMPLE))}  \n{row}"
    place.caption(row)


def example(text: str, negative: bool) -> str | None:
    """What may be drawn from a dynamic prompt; None for a prompt that is none. Raises InputError."""
    state = st.session_state
    asked = state["dynamic_prompts"]
    request = Request(text, dynamic_prompts=None if asked == "" else asked, prompt_language=state["prompt_language"])
    if not prompts.is_dynamic(request):
        return None
    lines = Wildcards().lines
    dynamic.check(text, lines)
    return dynamic.draw(text, f"0{' negative' * negative}", 0, lines)


def _badges(text: str, steps: int, negative: bool) -> list[str]:
    """What the syntax of a text means, each as a small badge."""
    found = marks.marks(text, steps, negative)
    words = [mark.words for mark in found[:MAX_MARKS]]
    if len(found) > MAX_MARKS:
        words.append(f"and {len(found) - MAX_MARKS} more")
    return [f":gray-badge[{session.plain(each)}]" for each in words]


def _newest(memory: str, committed: str, typed: str | None) -> str:
    """The text that Streamlit has, or the listener's, whichever changed last."""
    before = st.session_state.get(memory, (None, None, committed))
    text = before[2]
    if committed != before[0]:
        text = committed
    elif typed is not None and typed != before[1]:
        text = typed
    st.session_state[memory] = (committed, typed, text)
    return text
