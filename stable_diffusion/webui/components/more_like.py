"""More pictures like one: how different and how many, and the button that paints them."""

from __future__ import annotations

import streamlit as st

from stable_diffusion.errors import StableDiffusionError
from stable_diffusion.record.parameters import Parameters
from stable_diffusion.request import Request
from stable_diffusion.service import variations
from stable_diffusion.service.jobs import Job, Picture
from stable_diffusion.service.words import in_plain_words
from stable_diffusion.webui.components import handover, model_choice, session

TITLE, ICON = "More like this", ":material/auto_awesome_motion:"


def of_picture(job: Job, picture: Picture) -> None:
    """Offer variations of a job's picture. It stands in a fragment, where a callback could not draw the page again."""
    key = f"{job.id}-{picture.seed}-{picture.variation_seed}"
    with st.popover(TITLE, icon=ICON):
        strength, count = _choose(key)
        if st.button("Paint variations", key=f"vary-{key}", type="primary"):
            request = job.of_picture(job.pictures.index(picture))
            if _queued(variations.variations(request, strength, count)):
                st.rerun()


def of_record(parameters: Parameters | None, key: str) -> None:
    """Offer variations of a picture by what it says of itself; the form takes its settings on the way."""
    needs_input = parameters is not None and variations.begins_from_a_picture(parameters)
    unknown = parameters is None or parameters.seed is None
    why = "It began from another picture: send it to image to image instead." if needs_input else ""
    why = "It does not say how it was made." if unknown else why
    with st.popover(TITLE, icon=ICON, disabled=bool(why), help=why or None):
        if parameters is not None and not why:
            _choose(key)
            st.button("Paint variations", key=f"vary-{key}", type="primary", on_click=_from_record,
                      args=(parameters, key))  # fmt: skip


def _choose(key: str) -> tuple[float, int]:
    strength = st.slider(
        "How different",
        *variations.STRENGTHS,
        value=variations.USUAL_STRENGTH,
        step=0.05,
        key=f"vary-strength-{key}",
        help="How far the noise is turned towards that of other seeds: 0.1 changes details, 0.5 much, 1 all.",
    )
    count = st.number_input("How many", 1, variations.MAX_COUNT, variations.USUAL_COUNT, key=f"vary-count-{key}")
    return strength, int(count)


def _from_record(parameters: Parameters, key: str) -> None:
    state = st.session_state
    strength, count = state[f"vary-strength-{key}"], int(state[f"vary-count-{key}"])
    notes = handover.fill(parameters)
    try:
        request = session.request_from_form(None)
        if problem := model_choice.why_not(session.chosen_model()):
            notes.append(problem)
        elif _queued(variations.variations(request, strength, count)):
            notes.append(f"{count} variations of seed {parameters.seed} are painted.")
    except StableDiffusionError as error:
        notes.append(in_plain_words(error))
    state["handover_notes"], state["go_to"] = notes, handover.TEXT_PAGE


def _queued(request: Request) -> bool:
    """Queue a request for this tab; say it where the queue is full."""
    try:
        session.add_job(session.the_worker().submit(request))
    except StableDiffusionError as error:
        st.error(session.plain(in_plain_words(error)), icon=":material/error:")
        return False
    return True
