"""Upscale: pictures dropped here or sent from elsewhere, enlarged in the queue, and compared with what they were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import streamlit as st

from stable_diffusion.errors import StableDiffusionError
from stable_diffusion.pictures.formats import UPLOADS
from stable_diffusion.service.jobs import State
from stable_diffusion.service.shown import address
from stable_diffusion.service.upscaling import Enlarged, Enlarging, Source, check
from stable_diffusion.service.words import in_plain_words
from stable_diffusion.upscaling import upscalers
from stable_diffusion.upscaling.settings import DEFAULT, Upscaling
from stable_diffusion.upscaling.upscalers import NONE, Upscaler
from stable_diffusion.webui.components import compare, details, live, paste, session

BY, TO = "By a factor", "To a size"
REFRESH = 0.4  # seconds
LISTED_AGE = 2.0  # seconds
MAX_SHOWN = 12  # results with a slider; all can be downloaded
state = st.session_state


@st.cache_resource(ttl=LISTED_AGE, show_spinner=False)
def _listed() -> list[Upscaler]:
    return upscalers.all()


def show() -> None:
    """Draw the page."""
    left, right = st.columns(2, gap="large")
    with left:
        sources = _sources()
        settings = _settings()
        _start(sources, settings)
    with right:
        _work()


# --- What to enlarge, and how


def _sources() -> list[Source]:
    uploads = st.file_uploader(
        "Pictures to enlarge", type=UPLOADS, accept_multiple_files=True, key="upscale_uploads", help=paste.HELP
    )
    paste.draw(uploads)
    given: Source | None = state.get("upscale_given")
    if given is not None:
        with st.container(horizontal=True, vertical_alignment="center"):
            st.caption(session.plain(f"From this program: {details.one_line(given.name, 80)}"), width="stretch")
            st.button("Remove", key="upscale_forget", on_click=lambda: state.pop("upscale_given", None))
    return [*([given] if given else []), *(Source(each.name[-255:], each.getvalue()) for each in uploads or ())]


def _settings() -> Upscaling | None:
    known = {each.name: each for each in _listed()}
    if state.get("upscale_by_name") not in known:
        state["upscale_by_name"] = DEFAULT
    name = st.selectbox(
        "Upscaler",
        [each for each in known if each != NONE],
        key="upscale_by_name",
        format_func=lambda each: _title(known[each]),
        persist_state="session",
        help=f"Files in {upscalers.FOLDER}/ and in A1111's and ComfyUI's folders are listed here.",
    )
    how = st.segmented_control(
        "How far", [BY, TO], default=None if "upscale_how" in state else BY, required=True, key="upscale_how",
        persist_state="session",
    )  # fmt: skip
    size: dict[str, Any] = {}
    if how == TO:
        with st.container(horizontal=True):
            width = st.number_input("Target width", 1, 16384, 1024, key="upscale_width", persist_state="session")
            height = st.number_input("Target height", 1, 16384, 1024, key="upscale_height", persist_state="session")
        crop = st.toggle(
            "Crop to exactly this size", key="upscale_crop", persist_state="session",
            help="Off: the picture keeps its shape, and covers the size.",
        )  # fmt: skip
        size = {"to": (int(width), int(height)), "crop": crop}
    else:
        size["by"] = st.slider("Factor", 1.0, 8.0, 4.0, 0.25, key="upscale_factor", persist_state="session")
    with st.expander("Mix in a second upscaler"):
        second = st.selectbox(
            "Second upscaler", list(known), key="upscale_second", format_func=lambda each: _title(known[each]),
            persist_state="session",
        )  # fmt: skip
        visibility = st.slider(
            "Visibility", 0.0, 1.0, 0.5, 0.05, key="upscale_visibility", disabled=second == NONE,
            persist_state="session",
        )  # fmt: skip
    mixed: dict[str, Any] = {"second": second, "visibility": visibility} if second != NONE else {}
    try:
        return Upscaling(name, **size, **mixed)
    except StableDiffusionError as error:
        st.error(session.plain(str(error)), icon=":material/error:")
        return None


def _title(upscaler: Upscaler) -> str:
    if upscaler.problem:
        return f"{upscaler.name} (cannot be used)"
    return f"{upscaler.name} (x{upscaler.scale}, {upscaler.architecture})" if upscaler.scale else upscaler.name


def _start(sources: list[Source], settings: Upscaling | None) -> None:
    sizes: list[tuple[int, int]] = []
    problem = ""
    try:
        sizes = [check(source, settings) for source in sources] if settings is not None else []
    except StableDiffusionError as error:
        problem = str(error)
    if problem:
        st.error(session.plain(problem), icon=":material/error:")
    if len(sizes) == 1:
        st.caption(f"It becomes {sizes[0][0]:,} × {sizes[0][1]:,} pixels.")
    ready = bool(sources) and settings is not None and not problem
    # No callback: it would be given what the page showed before the field that was just left.
    if st.button("Upscale", type="primary", disabled=not ready, width="stretch") and settings is not None:
        _queue(sources, settings)


def _queue(sources: list[Source], settings: Upscaling) -> None:
    try:
        state["upscale_work"] = Enlarging(session.the_worker(), sources, settings)
    except StableDiffusionError as error:
        st.toast(session.plain(in_plain_words(error)), icon=":material/error:")


# --- What comes of it


def _work() -> None:
    work: Enlarging | None = state.get("upscale_work")
    if work is None:
        st.caption("Enlarged pictures appear here, and in the gallery.")
        return
    if work.task.active:
        st.fragment(_watch, run_every=REFRESH)(work)
        return
    if work.task.state is State.FAILED:
        st.error(session.plain(work.task.error), icon=":material/error:")
    elif work.task.state is State.CANCELLED:
        st.info(f"Stopped; {len(work.results)} of {len(work.sources)} are finished.", icon=":material/info:")
    if work.warning:
        st.warning(session.plain(work.warning), icon=":material/warning:")
    for name, why in work.failures:
        st.error(session.plain(f"{name}: {why}"), icon=":material/error:")
    for i, result in enumerate(work.results):
        _result(work, i, result)


def _watch(work: Enlarging) -> None:
    task = work.task
    if not task.active:
        st.rerun()
    position = session.the_worker().position(task)
    note = f"Queued, position {position}" if position else task.note or "Starting"
    if task.seconds_left is not None:
        note += f", {live.duration(task.seconds_left)} left"
    st.progress(min(1.0, max(0.0, task.fraction)), text=session.plain(note))
    st.button("Stop", disabled=task.cancelling, on_click=session.the_worker().cancel, args=(task,))


def _result(work: Enlarging, i: int, result: Enlarged) -> None:
    data = result.read()
    name = result.path.name if result.path else f"{Path(result.source.name).stem}-upscaled.png"
    if data is None:
        st.caption(session.plain(f"{result.source.name}: the result was deleted."))
        return
    if i < MAX_SHOWN:
        alt = f"{details.one_line(result.source.name, 80)}, enlarged"
        compare.draw(address(result.source.data), address(data), result.size, alt, f"compare-{work.task.id}-{i}")
    with st.container(horizontal=True, vertical_alignment="center"):
        st.download_button(
            "Download", data=data, file_name=name, mime="image/png", on_click="ignore", key=f"get-{work.task.id}-{i}",
            icon=":material/download:",
        )  # fmt: skip
        shown = details.one_line(result.source.name, 60)
        st.caption(session.plain(f"{shown} · {result.size[0]} × {result.size[1]}"), width="stretch")
