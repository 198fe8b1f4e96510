"""Everything that the worker has to do, whichever tab asked for it: what runs, what waits, and how to change that."""

import streamlit as st

from stable_diffusion.service.jobs import Comparison, Job, State, Work, is_sketch
from stable_diffusion.webui.components import details, session

BUSY, IDLE = 1.0, 3.0  # seconds between two looks
PROMPT_LENGTH = 60  # characters


def draw(shows_training: bool = False) -> None:
    """Draw the queue; nothing if it holds no more than the job, or the training, that this tab shows."""
    st.fragment(_draw, run_every=BUSY if session.the_worker().queue() else IDLE)(shows_training)


def _draw(shows_training: bool) -> None:
    if st.session_state.pop("queue_changed", False):
        st.rerun()
    works = [work for work in session.the_worker().queue() if not is_sketch(work)]
    shown = session.current_job()
    if not any(work is not shown for work in works) or not any(
        isinstance(work, Job) or (work.yields and not shows_training) for work in works
    ):
        return
    with st.container(border=True, key="queue"):
        st.markdown("**Queue**")
        for place, work in enumerate(works):
            _row(work, place, work is shown)


def _row(work: Work, place: int, shown: bool) -> None:
    waits = work.state is State.QUEUED
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.caption(session.plain(in_words(work)), width="stretch")
        if isinstance(work, Job) and not isinstance(work, Comparison) and not shown:
            st.button("Show", key=f"show-{work.id}", help="Show it in this tab", on_click=_watch, args=(work,))
        if waits and place > 1:
            st.button("Earlier", key=f"earlier-{work.id}", on_click=session.the_worker().move, args=(work, -1))
        st.button(
            "Remove" if waits else "Stop",
            key=f"stop-{work.id}",
            disabled=work.cancelling,
            on_click=session.the_worker().cancel,
            args=(work,),
        )


def in_words(work: Work) -> str:
    """What a job or task is, and how far it is."""
    if not isinstance(work, Job):
        return f"{work.note or 'A computation'}{' · paused' if work.state is State.PAUSED else ''}"
    prompt = details.one_line(work.request.prompt, PROMPT_LENGTH) or "(no prompt)"
    parts = [prompt]
    if work.n_images > 1:
        parts.append(f"{work.n_images} pictures")
    if work.repeat:
        parts.append("forever")
    parts.append("stopping" if work.cancelling else f"{work.fraction:.0%}" if work.frame else work.state.value)
    return " · ".join(parts)


def _watch(job: Job) -> None:
    session.watch(job)
    st.session_state["queue_changed"] = True
