"""Picture info: upload a picture, read how it was made, send that to the form."""

import io

import streamlit as st
from streamlit.runtime.uploaded_file_manager import UploadedFile

from stable_diffusion.errors import StableDiffusionError
from stable_diffusion.pictures.formats import UPLOADS
from stable_diffusion.pictures.reading import open_picture
from stable_diffusion.record import picture_files, reading
from stable_diffusion.service import shown
from stable_diffusion.service.words import in_plain_words
from stable_diffusion.webui.components import details, handover, paste, session


def show() -> None:
    """Draw the page."""
    upload = st.file_uploader("Picture to read", type=UPLOADS, key="info_upload", help=paste.HELP)
    paste.draw(upload)
    if upload is None:
        st.caption(
            "PNG, JPEG or WebP, made here or by AUTOMATIC1111's web UI, ComfyUI, InvokeAI, NovelAI, SwarmUI, Fooocus, "
            "SD.Next or Easy Diffusion. The picture stays on this machine."
        )
        return
    try:
        picture = open_picture(io.BytesIO(upload.getvalue()))
        text = picture_files.read_text(io.BytesIO(upload.getvalue()))
    except (StableDiffusionError, OSError) as error:
        st.error(session.plain(in_plain_words(error)), icon=":material/error:")
        return
    left, right = st.columns(2, gap="large")
    with left:
        source, kind = shown.for_browser(upload.getvalue())
        st.image(source, width="stretch", output_format=kind, alt="The picture that was read")
        st.caption(session.plain(f"{details.one_line(upload.name, 80)} · {picture.width} × {picture.height}"))
    with right:
        _actions(upload, text)
        if text:
            details.show(text)
        else:
            st.info("This picture does not say how it was made.", icon=":material/info:")


def _actions(upload: UploadedFile, text: str | None) -> None:
    parameters = reading.of_text(text).parameters if text else None
    with st.container(horizontal=True, gap="small"):
        st.button(
            "Reuse all settings",
            on_click=handover.send,
            args=(parameters,),
            disabled=parameters is None,
            icon=":material/edit:",
        )
    handover.send_buttons(parameters, lambda: session.input_file(upload))
