"""The styles: which are applied, and a form to make, change and delete those of styles.csv."""

from __future__ import annotations

import streamlit as st

from stable_diffusion.errors import StableDiffusionError
from stable_diffusion.service.words import in_plain_words
from stable_diffusion.text import styles
from stable_diffusion.text.styles import Style
from stable_diffusion.webui.components import prompt_texts, session
from stable_diffusion.webui.components.details import one_line

NEW = ""  # in place of a style's name
MAX_SHOWN = 200  # characters


def draw() -> None:
    """Draw the list of styles, what they make of the prompts, and their editor."""
    known = _known()
    chosen = st.session_state["styles"]
    options = list(dict.fromkeys([*sorted(known, key=str.casefold), *chosen]))
    st.multiselect(
        "Styles",
        options,
        key="styles",
        placeholder="None" if options else "None yet: make one below",
        help="Pieces of prompts by name, from styles.csv: {prompt} in one stands for the prompt; others are appended.",
        persist_state="session",
    )
    if missing := [name for name in chosen if name not in known]:
        st.error(session.plain(f"There is no style {', '.join(missing)} any more."), icon=":material/error:")
    elif chosen:
        whole = styles.apply(st.session_state["prompt"], st.session_state["negative"], styles.find(chosen, known))
        st.caption(f"Painted: {session.plain(one_line(whole[0], MAX_SHOWN))}")
        if whole[1] != st.session_state["negative"]:
            st.caption(f"Negative: {session.plain(one_line(whole[1], MAX_SHOWN))}")
    with st.expander("Edit styles"):
        _editor(known)


def _known() -> dict[str, Style]:
    try:
        return styles.listed()
    except (StableDiffusionError, OSError) as error:
        st.error(session.plain(in_plain_words(error)), icon=":material/error:")
        return {}


def _editor(known: dict[str, Style]) -> None:
    state = st.session_state
    own = {name for name, style in known.items() if style.path == styles.own_file()}
    if state.get("style_edited", NEW) not in known:
        state["style_edited"] = NEW
    st.selectbox(
        "Style to edit",
        [NEW, *sorted(known, key=str.casefold)],
        key="style_edited",
        format_func=lambda name: name or "A new one",
        on_change=_begin,
    )
    if "style_name" not in state:
        _begin()
    st.text_input("Name of the style", key="style_name", max_chars=styles.MAX_NAME)
    st.text_area("Prompt of the style", key="style_prompt", height=68, placeholder="{prompt}, watercolour")
    st.text_area("Negative prompt of the style", key="style_negative", height=68)
    with st.container(horizontal=True, gap="small"):
        st.button("Save style", on_click=_save)
        st.button("Take the prompts above", on_click=_take, help="Copy the form's prompts into the style")
        st.button("Delete style", disabled=state["style_edited"] not in own, on_click=_delete)
    if state["style_edited"] and state["style_edited"] not in own:
        st.caption(session.plain(f"From {known[state['style_edited']].path}; saved, a copy of it is made here."))
    if problem := state.pop("style_problem", None):
        st.error(session.plain(problem), icon=":material/error:")


def _begin() -> None:
    """Put the chosen style into the editor's fields."""
    try:
        style = styles.listed().get(st.session_state["style_edited"])
    except (StableDiffusionError, OSError):
        style = None
    style = style or Style("")
    st.session_state.update(style_name=style.name, style_prompt=style.prompt, style_negative=style.negative)


def _take() -> None:
    prompt_texts.receive()
    st.session_state.update(style_prompt=st.session_state["prompt"], style_negative=st.session_state["negative"])


def _save() -> None:
    state = st.session_state
    style = Style(state["style_name"].strip(), state["style_prompt"], state["style_negative"])
    before = state["style_edited"]
    try:
        styles.save(style, replaces=before)
    except (StableDiffusionError, OSError) as error:
        state["style_problem"] = in_plain_words(error)
        return
    state["styles"] = [style.name if name == before else name for name in state["styles"]]
    state["style_edited"] = style.name


def _delete() -> None:
    state = st.session_state
    name = state["style_edited"]
    try:
        styles.delete(name)
    except (StableDiffusionError, OSError) as error:
        state["style_problem"] = in_plain_words(error)
        return
    state["styles"] = [each for each in state["styles"] if each != name]
    state["style_edited"] = NEW
    _begin()
