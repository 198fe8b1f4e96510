"""Sample pictures to begin from, offered while no picture has been chosen."""

from __future__ import annotations

import streamlit as st

from stable_diffusion.service import samples, values
from stable_diffusion.service.samples import SAMPLES, Sample
from stable_diffusion.webui.components import session

MAX_SIDE = 512  # pixels; larger ones are enlarged like any other picture


def draw() -> None:
    """Draw the samples, each with a button that takes it."""
    st.caption("Or begin with one of these postcards:")
    with st.container(horizontal=True, gap="small", key="samples"):
        for sample in SAMPLES:
            with st.container(width=96, gap="xsmall"):
                st.image(samples.small(sample), width="stretch", output_format="PNG", alt=f"Sample: {sample.title}")
                st.button(sample.title, key=f"sample-{sample.name}", type="tertiary", on_click=_take, args=(sample,),
                          help="Begin from this picture")  # fmt: skip


def _take(sample: Sample) -> None:
    file = samples.file_of(sample, min(MAX_SIDE, *values.usual_size(session.chosen_model())))
    session.begin_from(file.open(), file)
    st.session_state["upload_problem"] = ""
