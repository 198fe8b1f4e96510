"""A picture's parameters: the prompts, a table, and the text as it is in the file.

A picture may come from anywhere, so none of its text is ever interpreted as Markdown or HTML.
"""

import streamlit as st

from stable_diffusion.record import reading
from stable_diffusion.record.parameters import Parameters
from stable_diffusion.service.differences import named
from stable_diffusion.service.gallery_index import storable
from stable_diffusion.webui.components import session

MAX_SHOWN = 20_000  # characters; anything longer is not a prompt but a file made to cause trouble
MAX_ROWS = 40


def show(text: str) -> None:
    """Draw the parameters of a picture from the text in it."""
    record = reading.of_text(text)
    parameters = record.parameters
    if parameters is None:
        st.info("Another program wrote how it made this picture. It is not understood here.", icon=":material/info:")
        st.caption("The text as it stands in the file")
        st.code(_shortened(text), language=None, wrap_lines=True)
        return
    if record.program:
        st.caption(f"Made with {record.program}")
    _text("Prompt", parameters.prompt)
    if parameters.negative:
        _text("Negative prompt", parameters.negative)
    if rows := facts(parameters):
        st.table({"Setting": list(rows), "Value": list(rows.values())}, border="horizontal")
    with st.expander("The text as it is in the file"):
        st.code(_shortened(text), language=None, wrap_lines=True)


def facts(parameters: Parameters) -> dict[str, str]:
    """Name and value of each recorded setting, escaped for a table, which interprets Markdown."""
    return {cell(name): cell(value) for name, value in list(named(parameters).items())[:MAX_ROWS]}


def one_line(text: str, length: int) -> str:
    """The beginning of a text, in one line and no longer than `length`."""
    words = " ".join(storable(text[: 4 * length]).split())
    return words if len(words) <= length else words[: length - 1].rstrip() + "…"


def cell(text: str) -> str:
    """A text in one line, escaped for a table."""
    return session.plain(one_line(text, 500))


def _text(label: str, text: str) -> None:
    st.caption(label)
    st.code(_shortened(text), language=None, wrap_lines=True)


def _shortened(text: str) -> str:
    text = storable(text)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}\n… and {len(text) - MAX_SHOWN} characters more"
