"""The form of a page: prompts, the input picture where there is one, Generate and Cancel."""

import time

import streamlit as st
from PIL import Image

from stable_diffusion.errors import StableDiffusionError
from stable_diffusion.pictures.formats import UPLOADS
from stable_diffusion.pictures.reading import fit, open_picture
from stable_diffusion.prompts import default_negative
from stable_diffusion.request import Request
from stable_diffusion.sampler import sampler_by_name
from stable_diffusion.service import values
from stable_diffusion.webui.components import (
    field_guard,
    fields,
    mask_painter,
    model_choice,
    paste,
    prompt_count,
    sample_pictures,
    session,
    style_choice,
    while_typing,
)
from stable_diffusion.webui.components.prompt_field import offer_words, prompt_field, remember

FITS = {"crop": "Cropped", "pad": "Padded", "stretch": "Stretched"}
SHOWN_SIDE = 384  # pixels
BEFORE = "input_before"  # the input picture that a pasted one replaced
REMOVED = "input_removed"  # the one that was taken out of the upload field last
DOUBLE_CLICK = 1.0  # seconds within which the same request counts once


def prompts() -> None:
    """Draw the two prompts, each with its token count."""
    live = while_typing.on()
    examples = values.examples(session.chosen_model())
    prompt_field("Prompt", "prompt", rows=4, placeholder=examples[0], live=live)
    prompt_count.draw("Prompt", "prompt")
    if st.session_state["blend_prompt"]:
        _second_text()
    negative(live)
    style_choice.draw()


def negative(live: bool = False) -> None:
    """Draw the negative prompt, and what is added to it; for `live` see `prompt_field`."""
    with st.container(gap=None):
        prompt_field("Negative prompt", "negative", placeholder="what should not be in the picture", live=live)
        offer_words()
    added = session.default_negative()
    if added:
        with st.container(horizontal=True, vertical_alignment="center", gap="small"):
            st.caption(f"Added to every generation: {session.plain(added)}", width="content")
            st.button("Leave it out", type="tertiary", key="no-default", on_click=_set_default_negative, args=(False,))
    elif default_negative(session.chosen_model()):
        st.button("Add the default negative prompt", type="tertiary", on_click=_set_default_negative, args=(True,))
    if st.session_state["cfg"] <= 1 and not sampler_by_name(st.session_state["sampler"]).needs_negative:
        st.caption("Ignored at CFG 1 or below, except for prompts with AND.")
    else:
        prompt_count.draw("Negative prompt", "negative", added)


def _second_text() -> None:
    """Draw what the prompt is mixed with: it comes from a frame of a morph."""
    fields.area("blend_prompt")
    fields.slider("blend_share", step=0.01)
    st.button("Leave out the second text", type="tertiary", on_click=session.put, args=({"blend_prompt": ""},))


def _set_default_negative(on: bool) -> None:
    st.session_state["default_negative"] = on


def input_picture() -> Image.Image | None:
    """Draw the input picture and its denoising strength; return the picture, or None if there is none yet."""
    picture = uploader()
    sizes()
    how = st.segmented_control(
        "Other shapes are",
        list(FITS),
        key="fit",
        required=True,
        format_func=FITS.__getitem__,
        help="Crop fills the size and cuts the rest, pad shows all of it on white, stretch distorts.",
        persist_state="session",
    )
    shown, beside = st.columns(2, vertical_alignment="center") if picture is not None else (None, st.container())
    with beside:
        strength_slider()
    if picture is not None and shown is not None:
        shown.image(_as_painted(picture, how or "crop"), width="stretch", output_format="JPEG", alt="The input picture")
    return picture


def uploader() -> Image.Image | None:
    """Draw the upload field; return the input picture, which may also come from elsewhere."""
    upload = st.file_uploader(
        "Input picture",
        type=UPLOADS,
        key="upload",
        on_change=_take_upload,
        help=paste.HELP,
    )
    paste.draw(upload)
    if BEFORE in st.session_state and st.session_state[BEFORE][0] is st.session_state.get("input_picture"):
        with st.container(horizontal=True, vertical_alignment="center", gap="small"):
            st.caption("The picture was pasted.", width="content")
            st.button("Put back the one before", type="tertiary", on_click=_put_back)
    if problem := st.session_state.get("upload_problem"):
        st.error(session.plain(problem), icon=":material/error:")
    if st.session_state.get("input_picture") is None:
        sample_pictures.draw()
    return st.session_state.get("input_picture")


def sizes() -> None:
    """Say at which size the input picture is painted if that is not its own, and offer to change that."""
    found = st.session_state.get("input_picture")
    size = (st.session_state["width"], st.session_state["height"])
    if found is None or found.size == size or st.session_state["by"]:
        return
    with st.container(horizontal=True, vertical_alignment="center"):
        st.caption(
            f"The picture has {found.width} × {found.height} pixels and is painted at {size[0]} × {size[1]}.",
            width="content",
        )
        st.button(
            "Take the picture's shape",
            type="tertiary",
            help="Set width and height to its shape, as large as the model paints best",
            on_click=session.take_shape,
        )
        st.button(
            "Take the picture's size",
            type="tertiary",
            help="Set width and height to its own, in multiples of 8",
            on_click=session.take_size,
        )


def strength_slider() -> None:
    """Draw the denoising strength, and how many steps it leaves."""
    strength = st.slider("Denoising strength", 0.0, 1.0, step=0.05, key="strength", persist_state="session")
    st.caption(strength_in_words(strength, int(st.session_state["steps"])))


def _as_painted(picture: Image.Image, how: str) -> Image.Image:
    """The picture at the chosen size and fit, small."""
    width, height = st.session_state["width"], st.session_state["height"]
    scale = min(1.0, SHOWN_SIDE / max(width, height))
    return fit(picture, max(1, round(width * scale)), max(1, round(height * scale)), how)


def strength_in_words(strength: float, steps: int) -> str:
    """Say how many steps a denoising strength leaves."""
    if not strength:
        return "Keeps the picture as it is, at the chosen size: nothing is painted."
    left = min(steps, int(steps * strength))
    if left == 0:
        return f"Leaves none of {steps} steps: choose a higher one."
    return f"Runs the last {left} of {steps} steps. 0 keeps the picture, 1 repaints it completely."


def _take_upload() -> None:
    upload = st.session_state["upload"]
    st.session_state["upload_problem"] = ""
    before = st.session_state.get("input_picture"), st.session_state.get("input_file")
    if upload is None:  # maybe only for a moment: a field for one file drops the old one before it takes another
        st.session_state[REMOVED] = before
    removed = st.session_state.pop(REMOVED, (None, None)) if upload is not None else (None, None)
    before = removed if before[0] is None else before
    st.session_state.pop(BEFORE, None)
    st.session_state["input_picture"] = None
    if upload is not None:
        try:
            session.begin_from(open_picture(upload), session.input_file(upload))
        except StableDiffusionError as error:
            st.session_state["upload_problem"] = str(error)
        if before[0] is not None and paste.is_pasted(upload):  # maybe by mistake: a key is pressed soon
            st.session_state[BEFORE] = st.session_state["input_picture"], before


def _put_back() -> None:
    _, (picture, file) = st.session_state.pop(BEFORE)
    st.session_state.update(input_picture=picture, input_file=file, upload_problem="")


def buttons(kind: str) -> None:
    """Draw Generate and Cancel, and the last error. kind: what the page starts from: text, picture or mask."""
    job = session.current_job()
    active = job is not None and job.active
    field_guard.draw()
    with st.container(horizontal=True):
        st.button(
            "Generate",
            type="primary",
            shortcut="Ctrl+Enter",
            help="Joins the queue while another picture is painted" if active else None,
            on_click=_generate,
            args=(kind,),
            width="stretch",
        )
        # Not Esc: that closes lists, full screen and menus, and ends typing.
        st.button("Cancel", shortcut="Ctrl+Shift+Enter", disabled=not active, on_click=_cancel, width="stretch")
        if job is not None and job.active and job.n_images > 1:
            st.button("Skip", help="Continue with the next picture", on_click=_skip, width="stretch")
    if st.toggle("Generate forever", key="forever", on_change=session.repeat_jobs, persist_state="session"):
        st.caption(
            "Paints with new seeds until you cancel or switch this off, even after this tab is closed. Other jobs get "
            "their turn in between."
        )
    while_typing.draw(kind)
    problem = st.session_state.get("form_problem") or (job.error if job is not None else "")
    if problem:
        st.error(session.plain(problem), icon=":material/error:")
    elif job is not None and job.warning:
        st.warning(session.plain(job.warning), icon=":material/warning:")


def _generate(kind: str) -> None:
    st.session_state["form_problem"] = ""
    picture = st.session_state.get("input_picture") if kind != "text" else None
    if kind != "text" and picture is None:
        st.session_state["form_problem"] = "Choose an input picture first."
        return
    if problem := model_choice.why_not(session.chosen_model()):
        st.session_state["form_problem"] = problem
        return
    try:
        field_guard.check()
        mask = mask_painter.mask() if kind == "mask" else None
        _submit(session.request_from_form(picture, mask))
    except StableDiffusionError as error:
        st.session_state["form_problem"] = str(error)


def _submit(request: Request) -> None:
    """Queue a request, but for the second one of a double click."""
    now, (then, before) = time.monotonic(), st.session_state.get("submitted", (0.0, None))
    if request == before and request.picture is before.picture and now - then < DOUBLE_CLICK:
        return
    session.add_job(session.the_worker().submit(request, st.session_state["forever"]))
    remember(request.prompt, request.negative)
    st.session_state["submitted"] = (now, request)


def _cancel() -> None:
    job = session.current_job()
    if job is not None:
        session.the_worker().cancel(job)


def _skip() -> None:
    job = session.current_job()
    if job is not None:
        session.the_worker().skip(job)
