"""From a picture to the form: its parameters, and the picture itself as the next input.

`send` is for a button's `on_click`. The form's keys can be written there only, before the sidebar is drawn; `follow`
then switches to the page, and `notes` says there what could not be taken over.
"""

from collections.abc import Callable

import streamlit as st

from stable_diffusion import catalogue, prompts, recorded
from stable_diffusion.errors import StableDiffusionError
from stable_diffusion.model_io import moved
from stable_diffusion.places import packaged
from stable_diffusion.record import keys
from stable_diffusion.record.inputs import InputFile
from stable_diffusion.record.parameters import Parameters
from stable_diffusion.request import DEFAULTS, read_record
from stable_diffusion.service import loras, values
from stable_diffusion.service.upscaling import Source
from stable_diffusion.webui.components import details, look, session

TEXT_PAGE, PICTURE_PAGE, INPAINT_PAGE, UPSCALE_PAGE = (
    str(packaged("webui", "pages", f"{name}.py")) for name in ("text_to_image", "image_to_image", "inpaint", "upscale")
)


def send(
    parameters: Parameters | None,
    read: Callable[[], InputFile] | None = None,
    page: str = PICTURE_PAGE,
) -> None:
    """Fill the form and go to it: to `page` with the picture of the file that `read` returns, else to text to image."""
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


def upscale(read: Callable[[], InputFile]) -> None:
    """Go to the page that enlarges, with the picture of the file that `read` returns."""
    try:
        file = read()
    except (StableDiffusionError, OSError) as error:
        st.session_state["handover_notes"] = [str(error)]
        return
    st.session_state["upscale_given"] = Source(file.name, file.data)
    st.session_state["go_to"] = UPSCALE_PAGE


def send_buttons(parameters: Parameters | None, read: Callable[[], InputFile]) -> None:
    """Draw the buttons that send a picture to a form, alone or with its parameters."""
    whole = False
    if parameters is not None:
        whole = st.toggle(
            "Send with its prompt and settings",
            value=True,
            key="send_whole",
            help="Off: the picture alone is sent, and the form stays as it is.",
            persist_state="session",
        )
    with st.container(horizontal=True, gap="small"):
        for label, icon, page in (
            ("Send to image to image", ":material/image:", PICTURE_PAGE),
            ("Send to inpaint", ":material/brush:", INPAINT_PAGE),
        ):
            st.button(label, icon=icon, on_click=send, args=(parameters if whole else None, read, page))
        st.button("Upscale", icon=":material/zoom_out_map:", on_click=upscale, args=(read,))


def follow() -> None:
    """Go to the page that `send` chose, if it did."""
    if page := st.session_state.pop("go_to", None):
        st.session_state["arrived"] = True
        st.switch_page(page)


def notes() -> None:
    """Say once what could not be taken over; scroll a page that was just opened to its top."""
    if st.session_state.pop("arrived", False):
        look.scroll_to_top()
    if left_out := st.session_state.pop("handover_notes", None):
        st.info("  \n".join(session.plain(details.one_line(note, 300)) for note in left_out), icon=":material/info:")


def fill(parameters: Parameters) -> list[str]:
    """Put a picture's parameters into the form; return, in words, what was left unchanged and why.

    A picture may come from anywhere: models, VAEs and LoRAs count only by listed names and hashes (never as paths or as
    something to download), and numbers only within what the form offers.
    """
    said, left_out = read_record(parameters)
    # A setting that the picture does not name had its default.
    found = {name: each.to_form(DEFAULTS[name]) for name, each in values.FORM.items() if each.key and not each.always}
    found |= {"loras": [], "vae": "", "refiner": "", "styles": [], "dynamic_prompts": "", "combinations": False}
    if parameters.model or parameters.model_hash:
        try:
            model = recorded.find_model(parameters.model or "", parameters.model_hash)
        except StableDiffusionError as error:
            left_out.append(f"{error} The chosen one was left.")
        else:
            if model.name == moved.now_at(parameters.model or ""):
                left_out.append(moved.note(parameters.model or ""))
            session.put({"model": model.name})
            session.apply_defaults()
    default = prompts.default_negative(session.chosen_model())
    found["default_negative"] = parameters.negative.strip().endswith(default)  # it is recorded, and added once
    for name, value in said.items():
        if name == "sampler" or name not in values.FORM or values.shows(name, value):
            found[name] = value
        else:
            title = values.FORM[name].title or name.title()
            left_out.append(f"{title} {value} is not offered here, and was left as it is.")
    if refiner := parameters.extra.get(keys.REFINER):
        try:
            found["refiner"] = recorded.find_model(*keys.titled(refiner)).name
        except StableDiffusionError as error:
            left_out.append(f"{error} It was left out.")
    if vae := parameters.extra.get(keys.VAE):
        try:
            path = recorded.find_vae(vae, parameters.extra.get(keys.VAE_HASH))
            found["vae"] = next((name for name, other in catalogue.vaes().items() if other == path), "")
        except StableDiffusionError as error:
            left_out.append(f"{error} It was left out.")
    laid_over, hashes = parameters.extra.get(keys.LORA, ""), parameters.extra.get(keys.LORA_HASHES, "")
    found["loras"], notes = loras.from_text(laid_over, hashes)
    left_out += notes
    session.put(found)
    return left_out
