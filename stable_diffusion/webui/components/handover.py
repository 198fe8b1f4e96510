"""From a picture to the form: what it says about itself, and the picture itself, as the start of the next generation.

`send` is for a button's `on_click`. The form's keys can be written there only, before the sidebar is drawn; `follow`
then goes to the page that was meant, and `notes` says there what could not be taken over.
"""

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import streamlit as st

from stable_diffusion import catalogue
from stable_diffusion.errors import SamplerError, StableDiffusionError
from stable_diffusion.places import packaged
from stable_diffusion.record import keys
from stable_diffusion.record.inputs import InputFile
from stable_diffusion.record.parameters import Parameters
from stable_diffusion.sampler import key_of, sampler_from_a1111
from stable_diffusion.service import loras, masks, values
from stable_diffusion.webui.components import details, session

TEXT_PAGE, PICTURE_PAGE, INPAINT_PAGE = (
    str(packaged("webui", "pages", f"{name}.py")) for name in ("text_to_image", "image_to_image", "inpaint")
)
SIDES = 8  # pixels: what width and height are multiples of
TO_THE_TOP = """<script>document.querySelector('[data-testid="stMain"]')?.scrollTo(0, 0)</script>"""
# What changes a picture and can be asked for by the commands alone.
ELSEWHERE = (keys.PROMPT_LANGUAGE, keys.CFG_RESCALE, keys.PREDICTION_TYPE, keys.BITS, keys.VAE)
NUMBERS = {
    "steps": "Steps",
    "cfg": "CFG",
    "seed": "Seed",
    "width": "Width",
    "height": "Height",
    "strength": "Denoising strength",
}


def send(
    parameters: Parameters | None,
    read: Callable[[], InputFile] | None = None,
    page: str = PICTURE_PAGE,
) -> None:
    """Fill the form, and go to it: to `page` with the picture in a file that is read now, else to text to image."""
    try:
        file = None if read is None else read()
        picture = None if file is None else file.open()
    except (StableDiffusionError, OSError) as error:
        st.session_state["handover_notes"] = [str(error)]
        return
    st.session_state["handover_notes"] = fill(parameters) if parameters is not None else []
    if picture is not None:
        session.begin_from(picture, file)
        st.session_state["upload_problem"] = ""
    st.session_state["go_to"] = page if picture is not None else TEXT_PAGE


def follow() -> None:
    """Go to the page that `send` chose, if it did."""
    if page := st.session_state.pop("go_to", None):
        st.session_state["arrived"] = True
        st.switch_page(page)


def notes() -> None:
    """Say once what could not be taken over; a page that was just gone to is shown from its top."""
    if st.session_state.pop("arrived", False):
        with st.sidebar:  # at whose end it takes no room
            st.html(TO_THE_TOP, unsafe_allow_javascript=True)
    if left_out := st.session_state.pop("handover_notes", None):
        st.info("  \n".join(session.plain(details.one_line(note, 300)) for note in left_out), icon=":material/info:")


def fill(parameters: Parameters) -> list[str]:
    """Put a picture's parameters into the form; return, in words, what was left as it is and why.

    A picture may come from anywhere: a model counts only by a name of the catalogue (never as a path or as something to
    download), and numbers only within what the form offers.
    """
    left_out: list[str] = []
    found: dict[str, Any] = {"prompt": parameters.prompt, "negative": parameters.negative}
    if parameters.model:
        if name := model_named(parameters.model):
            session.put({"model": name})
            session.apply_defaults()
        else:
            left_out.append(f"The model {parameters.model!r} is not here; the chosen one was left.")
    if parameters.sampler:
        try:
            found["sampler"] = key_of(sampler_from_a1111(parameters.sampler, parameters.schedule))
        except SamplerError:
            wanted = " ".join(filter(None, (parameters.sampler, parameters.schedule)))
            left_out.append(f"The sampler {wanted!r} is not offered here; the chosen one was left.")
    for key, label in NUMBERS.items():
        number = getattr(parameters, key)
        low, high = (values.WHOLE | values.REAL)[key]
        if number is not None and low <= number <= high and not (key in ("width", "height") and number % SIDES):
            found[key] = number
        elif number is not None:
            left_out.append(f"{label} {number} is not offered here, and was left as it is.")
    for key in ELSEWHERE:
        if key in parameters.extra:
            left_out.append(f"{key} {parameters.extra[key]} can be chosen on the command line alone.")
    session.put(found | masks.form_values(parameters.extra) | _of_engine(parameters.extra, left_out))
    return left_out


def _of_engine(extra: Mapping[str, str], left_out: list[str]) -> dict[str, Any]:
    """The form's values for LoRAs, clip skip and variation: what a picture does not name, it was painted without."""
    here, missing = loras.from_text(extra.get(keys.LORA, ""))
    left_out += [f"The LoRA {name!r} is not here, and was left out." for name in missing]
    found: dict[str, Any] = {
        "loras": here,
        "clip_skip": values.OWN_LAYER,
        "variation_seed": values.RANDOM_SEED,
        "variation_strength": 0.0,
    }
    for key, name, read in (
        ("clip_skip", keys.CLIP_SKIP, int),
        ("variation_seed", keys.VARIATION_SEED, int),
        ("variation_strength", keys.VARIATION_STRENGTH, float),
    ):
        with contextlib.suppress(ValueError):
            found[key] = read(extra.get(name, "")[:20])
    return found


def model_named(wanted: str) -> str | None:
    """The catalogue's name of the model that a picture names, or None where it has none of that name."""
    listed = catalogue.all()
    for fits in (
        lambda model: wanted == model.name,
        lambda model: wanted.casefold() in (model.name.casefold(), model.title.casefold()),
        lambda model: wanted.casefold() == model.name.rpartition("/")[2].casefold(),
    ):
        if model := next(filter(fits, listed), None):
            return model.name
    return None
