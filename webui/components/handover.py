"""From a picture to the form: what it says about itself, and the picture itself, as the start of the next generation.

`send` is for a button's `on_click`. The form's keys can be written there only, before the sidebar is drawn; `follow`
then goes to the page that was meant, and `notes` says there what could not be taken over.
"""

from collections.abc import Callable

import streamlit as st
from PIL import Image

import models
import utils
from stable_diffusion.errors import SamplerError, StableDiffusionError
from stable_diffusion.sampler import key_of, sampler_from_a1111
from webui.components import session
from webui.worker import MAX_SEED

TEXT_PAGE = "webui/pages/text_to_image.py"
PICTURE_PAGE = "webui/pages/image_to_image.py"
MAX_PROMPT = 20_000  # characters; more is no prompt but a file that somebody made to be difficult
SIDES = range(64, 2049, 8)  # pixels
STEPS = range(1, 151)
CFG = (0.0, 20.0)
SEEDS = range(0, MAX_SEED + 1)


def send(parameters: utils.Parameters | None, picture: Image.Image | Callable[[], Image.Image] | None = None) -> None:
    """Fill the form, and go to it: to image to image with a picture (or what opens one), else to text to image."""
    try:
        opened = picture() if callable(picture) else picture
    except (StableDiffusionError, OSError) as error:
        st.session_state["handover_notes"] = [str(error)]
        return
    st.session_state["handover_notes"] = fill(parameters) if parameters is not None else []
    if opened is not None:
        st.session_state["input_picture"] = opened
        st.session_state["upload_problem"] = ""
    st.session_state["go_to"] = PICTURE_PAGE if opened is not None else TEXT_PAGE


def follow() -> None:
    """Go to the page that `send` chose, if it did."""
    if page := st.session_state.pop("go_to", None):
        st.switch_page(page)


def notes() -> None:
    """Say once what could not be taken over."""
    if left_out := st.session_state.pop("handover_notes", None):
        st.info("  \n".join(session.plain(note) for note in left_out), icon=":material/info:")


def fill(parameters: utils.Parameters) -> list[str]:
    """Put a picture's parameters into the form's session state; return, in words, what was left as it is and why.

    A picture may come from anywhere: a model counts only by a name of the catalogue (never as a path or as something to
    download), and numbers only within what the form offers.
    """
    left_out: list[str] = []
    _take_model(parameters, left_out)
    st.session_state["prompt"] = parameters.prompt[:MAX_PROMPT]
    st.session_state["negative"] = parameters.negative[:MAX_PROMPT]
    _take_sampler(parameters, left_out)
    found: dict[str, tuple[str, float | int | None, bool]] = {
        "steps": ("Steps", parameters.steps, parameters.steps in STEPS),
        "cfg": ("CFG", parameters.cfg, parameters.cfg is not None and CFG[0] <= parameters.cfg <= CFG[1]),
        "seed": ("Seed", parameters.seed, parameters.seed in SEEDS),
        "width": ("Width", parameters.width, parameters.width in SIDES),
        "height": ("Height", parameters.height, parameters.height in SIDES),
        "strength": ("Denoising strength", parameters.strength, 0.0 <= (parameters.strength or 0.0) <= 1.0),
    }
    for key, (label, value, usable) in found.items():
        if value is not None and usable:
            st.session_state[key] = float(value) if key in ("cfg", "strength") else int(value)
        elif value is not None:
            left_out.append(f"{label} {value} is not offered here, and was left as it is.")
    return left_out


def _take_model(parameters: utils.Parameters, left_out: list[str]) -> None:
    wanted = parameters.model
    if not wanted:
        return
    name = model_named(wanted)
    if name is None:
        left_out.append(f"The model {wanted!r} is not here; the chosen one was left.")
    elif name != st.session_state.get("model"):
        st.session_state["model"] = name
        session.apply_defaults()


def model_named(wanted: str) -> str | None:
    """The catalogue's name of the model that a picture names, or None where it has none of that name."""
    listed = models.all()
    for fits in (
        lambda model: wanted == model.name,
        lambda model: wanted.casefold() in (model.name.casefold(), model.title.casefold()),
        lambda model: wanted.casefold() == model.name.rpartition("/")[2].casefold(),
    ):
        if model := next(filter(fits, listed), None):
            return model.name
    return None


def _take_sampler(parameters: utils.Parameters, left_out: list[str]) -> None:
    if not parameters.sampler:
        return
    try:
        st.session_state["sampler"] = key_of(sampler_from_a1111(parameters.sampler, parameters.schedule))
    except SamplerError:
        wanted = " ".join(filter(None, (parameters.sampler, parameters.schedule)))
        left_out.append(f"The sampler {wanted!r} is not offered here; the chosen one was left.")
