"""The sidebar: which model, how it is sampled, and how large, how many."""

import streamlit as st

import models
from stable_diffusion.sampler import sampler_names
from webui.components import session
from webui.worker import MAX_SEED

FAMILIES = {"sd1": "Stable Diffusion 1.x", "sd2": "Stable Diffusion 2.x", "sdxl": "Stable Diffusion XL"}
PREVIEWS = {"auto": "Automatic", "fast": "Fast, approximate colours", "full": "Full decode"}


def sidebar() -> None:
    """Draw the settings that both pages share; their values live in the session's state."""
    catalogue = {model.name: model for model in models.all()}
    with st.sidebar:
        st.selectbox(
            "Model",
            list(catalogue),
            key="model",
            format_func=lambda name: catalogue[name].title if name in catalogue else name,
            on_change=session.apply_defaults,
            persist_state="session",
        )
        _about(catalogue.get(st.session_state["model"]))
        names = sampler_names()
        st.selectbox(
            "Sampler",
            list(names),
            key="sampler",
            format_func=lambda key: names.get(key, key),
            persist_state="session",
        )
        st.slider("Steps", 1, 150, key="steps", persist_state="session")
        st.slider(
            "CFG",
            0.0,
            20.0,
            step=0.5,
            key="cfg",
            help="How closely the picture follows the prompt. Up to 1: no guidance, and each step costs half.",
            persist_state="session",
        )
        left, right = st.columns(2)
        left.number_input("Width", 64, 2048, step=8, key="width", persist_state="session")
        right.number_input("Height", 64, 2048, step=8, key="height", persist_state="session")
        st.number_input("Number of pictures", 1, 16, key="n_images", persist_state="session")
        st.number_input(
            "Seed",
            -1,
            MAX_SEED,
            key="seed",
            help="The same seed and settings give the same picture. -1: a new one every time.",
            persist_state="session",
        )
        st.selectbox(
            "Preview",
            list(PREVIEWS),
            key="preview",
            format_func=PREVIEWS.__getitem__,
            help="What shows the current estimate while it is painted. A full decode is sharper and takes longer.",
            persist_state="session",
        )


def _about(model: models.Model | None) -> None:
    if model is not None:
        parts = [FAMILIES.get(model.family), model.licence, _size(model.size_bytes)]
        st.caption(session.plain(" · ".join(part for part in parts if part)))


def _size(n_bytes: int | None) -> str:
    if not n_bytes:
        return ""
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.0f} MB"
