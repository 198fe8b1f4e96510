"""Widgets of single settings: label, bounds and help come from the setting, the value lives in the session state."""

from typing import Any

import streamlit as st

from stable_diffusion.errors import StableDiffusionError
from stable_diffusion.service import values
from stable_diffusion.webui.components import session


def toggle(name: str) -> None:
    """Draw a switch."""
    each = values.FORM[name]
    st.toggle(each.title, key=name, help=session.plain(sentence(each.help)), persist_state="session")


def slider(name: str, step: float = 0.05, disabled: bool = False) -> None:
    """Draw a slider for a number."""
    each = values.FORM[name]
    st.slider(
        each.title,
        *values.bounds(name),
        step=step,
        key=name,
        disabled=disabled,
        help=sentence(each.help),
        persist_state="session",
    )


def number(name: str, disabled: bool = False, step: int | None = None) -> None:
    """Draw a field for a number, with buttons to step it."""
    each = values.FORM[name]
    st.number_input(
        each.title,
        *values.bounds(name),
        step=step,
        key=name,
        disabled=disabled,
        help=sentence(each.help),
        persist_state="session",
    )


def area(name: str, placeholder: str = "") -> None:
    """Draw a field for a text of some lines."""
    each = values.FORM[name]
    st.text_area(
        each.title,
        key=name,
        height=68,
        placeholder=placeholder,
        help=sentence(each.help),
        persist_state="session",
    )


def typed(name: str, disabled: bool = False) -> None:
    """Draw a text field for a number that may be larger than a browser can count."""
    each = values.FORM[name]
    st.text_input(
        each.title,
        key=name,
        disabled=disabled,
        max_chars=24,
        help=f"{sentence(each.help)} -1: a new one every time.",
        persist_state="session",
    )
    try:
        values.typed(name, st.session_state[name])
    except StableDiffusionError as error:
        st.error(session.plain(str(error)), icon=":material/error:")


def select(name: str, titles: dict[Any, str], disabled: bool = False) -> None:
    """Draw a list to choose from; `titles` are the values, with their words."""
    each = values.FORM[name]
    st.selectbox(
        each.title,
        list(titles),
        key=name,
        disabled=disabled,
        format_func=titles.__getitem__,
        help=sentence(each.help),
        persist_state="session",
    )


def choice(name: str, titles: dict[Any, str]) -> None:
    """Draw a few values side by side; `titles` as for `select`."""
    each = values.FORM[name]
    st.segmented_control(
        each.title,
        list(titles),
        key=name,
        required=True,
        format_func=titles.__getitem__,
        help=session.plain(sentence(each.help)),
        persist_state="session",
    )


def sentence(text: str) -> str:
    """A setting's help as a sentence."""
    return f"{text[:1].upper()}{text[1:]}."
