"""What the pages of several pictures share, Compare and Morph: how far a job is, and the picture that is opened."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TypeVar

import streamlit as st

from stable_diffusion.record import picture_files
from stable_diffusion.record.inputs import InputFile
from stable_diffusion.record.reading import of_text
from stable_diffusion.service import shown
from stable_diffusion.service.films import bytes_of
from stable_diffusion.service.jobs import Picture, Series, State
from stable_diffusion.webui.components import details, handover, live, session

AnySeries = TypeVar("AnySeries", bound=Series)


def job_of(tab: str, kind: type[AnySeries], latest: AnySeries | None) -> AnySeries | None:
    """The job that this tab shows: its own, whose id is `tab` in the session's state, or the latest one."""
    own = session.the_worker().job(st.session_state.get(tab))
    return own if isinstance(own, kind) else latest


def stop(job: Series | None) -> None:
    """Stop a job if there is one."""
    if job is not None:
        session.the_worker().cancel(job)


def followed(job_id: str, kind: type[AnySeries], watched: str) -> AnySeries:
    """The job of this id, in a fragment that shows it; the whole page runs once when it is gone or has ended.

    `watched` names a place in the session's state.
    """
    job = session.the_worker().job(job_id)
    if not isinstance(job, kind):
        st.rerun()
    if job.active:
        st.session_state[watched] = job.id
    elif st.session_state.get(watched) == job.id:
        st.session_state[watched] = None
        st.rerun()
    return job


def progress(job: Series, n_finished: int, total: int, noun: str, again: str) -> None:
    """Draw how far a job is, and what failed; `again` is the button that goes on with the rest."""
    words = f"{n_finished} of {total} {noun}"
    if job.state is State.QUEUED:
        st.progress(0.0, text=f"Queued, position {max(session.the_worker().position(job), 1)}")
    elif job.active:
        parts = [words, session.plain(job.note) if job.note else ""]
        if job.cancelling:
            parts.append("stopping")
        elif job.seconds_left is not None:
            parts.append(f"{live.duration(job.seconds_left)} left")
        part = job.frame.index / job.frame.total if job.frame is not None and job.pictures[-1].frames else 0.0
        done = min(1.0, (n_finished + (0.0 if job.pictures and job.pictures[-1].finished else part)) / total)
        st.progress(done, text=" · ".join(filter(None, parts)))
    elif job.state is State.CANCELLED:
        st.caption(f"Stopped: {words}. {again} goes on with the others.")
    else:
        st.caption(words)
    if job.error:
        st.error(session.plain(job.error), icon=":material/error:")
    if job.problems:
        first = next(iter(job.problems.values()))
        st.error(session.plain(f"{len(job.problems)} {noun} failed; the first: {first}"), icon=":material/error:")


def opened(title: str, alt: str, picture: Picture | None, instead: str, close: Callable[[], None]) -> None:
    """Draw a finished picture and how it was made; `instead` is said of one that is not there."""
    if {"go_to", "handover_notes"} & set(st.session_state):  # a button below was clicked; only a full run can go there
        st.rerun()
    with st.container(border=True, key="series-opened"):
        st.markdown(f"**{session.plain(title)}**")
        if picture is None or not picture.there:
            st.caption(session.plain(instead))
            return
        data = bytes_of(picture)
        source, kind = shown.for_browser(data)
        st.image(source, width="content", output_format=kind, alt=alt)
        text = picture_files.read_text(io.BytesIO(data)) or ""
        name = picture.path.name if picture.path else "picture.png"
        with st.container(horizontal=True, gap="small"):
            st.download_button("Download", data=data, file_name=name, on_click="ignore", icon=":material/download:")
            st.button("Reuse all settings", icon=":material/edit:", on_click=handover.send,
                      args=(of_text(text).parameters,))  # fmt: skip
            st.button("Send to image to image", icon=":material/image:", on_click=handover.send,
                      args=(None, lambda: InputFile(name, data)))  # fmt: skip
            st.button("Upscale", icon=":material/zoom_out_map:", on_click=handover.upscale,
                      args=(lambda: InputFile(name, data),))  # fmt: skip
            st.button("Close", on_click=close)
        details.show(text)
