"""The dropdown of models: what each one is, and its download if it is not here yet."""

import streamlit as st

from stable_diffusion import catalogue, families
from stable_diffusion.model_io import moved
from stable_diffusion.service.downloads import LookUp, hub_page
from stable_diffusion.webui.components import session

REFRESH = 0.5  # seconds
MAX_ID = 300  # characters of an id or address


def draw() -> None:
    """Draw the dropdown, and below it the chosen model's family, size and licence, or its download."""
    _take_looked_up()
    listed = {model.name: model for model in session.listed_models()}
    marks = {name: _mark(model) for name, model in listed.items()}
    st.selectbox(
        "Model",
        list(listed),
        key="model",
        format_func=lambda name: listed[name].title + marks[name],
        on_change=session.apply_defaults,
        persist_state="session",
    )
    model = listed[st.session_state["model"]]
    v_prediction = "v prediction" if model.prediction_type == "v_prediction" else ""
    size = size_in_words(model.size_bytes)
    parts = [families.get(model.family).long_title, v_prediction, model.precision, model.licence, size]
    st.caption(session.plain(" · ".join(part for part in parts if part)))
    if moved_here := st.session_state.get("hub_moved", {}).get(model.name):
        st.caption(session.plain(moved_here))
    if model.problem:
        st.warning(session.plain(model.problem), icon=":material/warning:")
    elif marks[model.name]:
        download = session.the_downloads().get(model.name)
        active = download is not None and download.active
        st.fragment(_download if active else _offer, run_every=REFRESH if active else None)(model)


def more() -> None:
    """Draw what finds further models: those of the hub by their id, and new files."""
    asked: LookUp | None = st.session_state.get("look_up")
    st.button(
        "Refresh the lists", icon=":material/refresh:", on_click=session.refresh_lists,
        help="Look for new files of models and LoRAs now, without loading the page again",
    )  # fmt: skip
    with st.form("hub", border=False):
        st.text_input(
            "Model of the Hugging Face hub",
            key="hub_id",
            max_chars=MAX_ID,
            placeholder="organisation/name",
            help="The id of a model in diffusers' form, or the address of its page. It is looked up first; the "
            "download starts only when you say so.",
        )
        st.form_submit_button("Look up", on_click=_look_up, disabled=asked is not None and asked.active)
    if asked is not None and asked.active:
        st.fragment(_watch_look_up, run_every=REFRESH)(asked)
    elif asked is not None and asked.error:
        st.error(session.plain(asked.error), icon=":material/error:")


def _look_up() -> None:
    state = st.session_state
    before: LookUp | None = state.get("look_up")
    name = state["hub_id"].strip()
    if not name or (before is not None and before.active and before.name == name):
        return
    state["look_up"] = session.the_downloads().look_up(name)


def _watch_look_up(asked: LookUp) -> None:
    if not asked.active:
        st.rerun()
    st.caption(session.plain(f"Asking the hub for {asked.name}…"))


def _take_looked_up() -> None:
    """Choose the model that was looked up, once that is done."""
    state = st.session_state
    asked: LookUp | None = state.get("look_up")
    if asked is None or asked.model is None:
        return
    state["look_up"], state["hub_id"] = None, ""
    session.looked_up()[asked.model.name] = asked.model
    if words := moved.note(asked.name):
        state.setdefault("hub_moved", {})[asked.model.name] = words
    state["model"] = asked.model.name
    session.apply_defaults()


def _mark(model: catalogue.Model) -> str:
    if model.lacks_vae:
        return " (needs a VAE)"
    if model.problem:
        return " (cannot be used)"
    return "" if model.present else " (not downloaded)"


def why_not(model: catalogue.Model) -> str:
    """Why a model cannot paint at present, or ""."""
    if model.problem and not (model.lacks_vae and st.session_state.get("vae")):
        return model.problem
    if model.present:
        return ""
    size = size_in_words(_download_size(model))
    return f"{model.title} is not downloaded yet{f' ({size})' if size else ''}: press Download under Model first."


def size_in_words(n_bytes: int | None) -> str:
    """A size on disk in few words: 4.3 GB, 26 MB."""
    if not n_bytes:
        return ""
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.0f} MB"


def model_or_default() -> catalogue.Model:
    """The chosen model if it can be loaded without the network, else the embedded one."""
    model = session.chosen_model()
    return catalogue.find(catalogue.DEFAULT) if model.problem or not model.present else model


def _download_size(model: catalogue.Model) -> int | None:
    from stable_diffusion.backend import default_float16

    return model.download_size(default_float16())


def _offer(model: catalogue.Model) -> None:
    size = size_in_words(_download_size(model)) or "a size that is not known"
    with st.container(border=True):
        st.markdown(session.plain(f"Not on this machine yet. Download {size}?"))
        licence = f"Its licence: {model.licence}. " if model.licence else ""
        st.caption(session.plain(f"{licence}By downloading you agree to it."))
        st.link_button("Licence and model card", hub_page(model), type="tertiary")
        if st.button("Download", icon=":material/download:", key="download-model", width="stretch"):
            session.the_downloads().start(model)
            st.rerun()
        download = session.the_downloads().get(model.name)
        if download is not None and download.error:
            st.error(session.plain(download.error), icon=":material/error:")


def _download(model: catalogue.Model) -> None:
    download = session.the_downloads().get(model.name)
    if download is None or not download.active:
        st.rerun()
    note = f"{download.note}, {download.fraction:.0%}" if download.fraction is not None else download.note
    st.progress(min(1.0, max(0.0, download.fraction or 0.0)), text=session.plain(note))
    st.button("Cancel download", disabled=download.cancelling, on_click=download.cancel, width="stretch")
