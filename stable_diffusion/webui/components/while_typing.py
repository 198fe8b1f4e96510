"""Paint while you type: sketches of the form as it is, in place of one another, where a picture is a matter of moments.

A sketch is not saved until it is asked for, and gives way to everything else that the worker has to do.
"""

from __future__ import annotations

import dataclasses
import os
import secrets

import streamlit as st

from stable_diffusion.errors import StableDiffusionError
from stable_diffusion.request import Request
from stable_diffusion.service import shown
from stable_diffusion.service.jobs import Job, State
from stable_diffusion.service.preview import data_url
from stable_diffusion.service.words import in_plain_words
from stable_diffusion.webui.components import session

ON = "while_typing"  # keys of the session's state
SKETCH, LATEST, REQUEST, SEED = "sketch_id", "sketch_shown", "sketch_request", "sketch_seed"
PROBLEM, WAITS = "sketch_problem", "sketch_waits"
VARIABLE = "STABLE_DIFFUSION_WHILE_TYPING"  # seconds that a picture may take
QUICK = 0.5  # seconds, unless the variable says more or less
PATIENCE = 2.0  # times as long a picture may become before it ends
REFRESH, LOOK_AGAIN = 0.1, 1.0  # seconds
MAX_SEED = 2**32 - 1
HELP = (
    "Paints the form as it is whenever typing pauses. These pictures are saved only if you keep one, and give way to "
    "all others."
)


def on() -> bool:
    """Whether the prompt fields should report what is typed at once."""
    return bool(st.session_state.get(ON)) and bool(st.session_state.get(f"{ON}_offered"))


def draw(kind: str) -> None:
    """Draw the switch where pictures are quick, and paint a sketch if it is on. kind: as for `form.buttons`."""
    state = st.session_state
    request = _request(kind)
    seconds = session.the_worker().paces.expected(request) if request is not None else None
    # While the prompt is empty or unfinished the switch stays.
    quick = seconds <= _limit() * (PATIENCE if state.get(ON) else 1) if seconds is not None else on() and kind != "mask"
    state[f"{ON}_offered"] = quick
    if not quick:
        return
    st.toggle("Paint while you type", key=ON, help=HELP, on_change=_switch, persist_state="session")
    if state[ON] and request is not None and request.prompt:
        _paint(request)
        sketch = _sketch()
        if words := state.get(PROBLEM) or state.get(WAITS) or (sketch.error if sketch is not None else ""):
            st.caption(session.plain(words))


def panel() -> bool:
    """Draw the newest sketch in place of a job's panel if it is newer than the job; whether it was drawn."""
    sketch, job = _sketch(), session.current_job()
    if sketch is None or (job is not None and job.active) or _older(sketch, job):
        return False
    if sketch.active:
        st.fragment(_watch, run_every=REFRESH)(sketch.id)
        return True
    if _finished(sketch):
        st.session_state[LATEST] = sketch.id
    if (latest := _latest()) is None:
        return False
    st.fragment(_show)(latest.id)
    return True


# --- Painting


def _limit() -> float:
    try:
        return float(os.environ.get(VARIABLE) or QUICK)
    except ValueError:
        return QUICK


def _request(kind: str) -> Request | None:
    """What would be sketched; None where that is not possible."""
    state = st.session_state
    picture = state.get("input_picture") if kind == "picture" else None
    if kind == "mask" or (kind == "picture" and picture is None):
        return None
    try:
        request = session.request_from_form(picture)
    except StableDiffusionError:
        return None
    if any((request.hires_scale, request.hires_width, request.hires_height, request.by, request.tile, request.refiner)):
        return None
    seed = request.seed if request.seed is not None else state.setdefault(SEED, secrets.randbelow(MAX_SEED))
    return dataclasses.replace(request, seed=seed, n_images=1, combinations=False, previews=(), attention=False)


def _paint(request: Request) -> None:
    """Paint a sketch, unless the last one is of the same request."""
    state, worker, last = st.session_state, session.the_worker(), _sketch()
    before: Request | None = state.get(REQUEST)
    same = before == request and before.picture is request.picture
    if same and (state.get(PROBLEM) or (last is not None and last.state is not State.CANCELLED)):
        return
    state.update({REQUEST: request, PROBLEM: "", WAITS: ""})
    try:
        job = worker.sketch(request, last)
    except StableDiffusionError as error:
        state[PROBLEM] = in_plain_words(error)
        return
    if job is not None:
        state[SKETCH] = job.id
        return
    state.pop(REQUEST)
    if worker.queue():
        state[WAITS] = "Waits until nothing else is painted."
        st.fragment(_look_again, run_every=LOOK_AGAIN)()
    else:
        state[WAITS] = "Press Generate once: the model has left the memory."


def _look_again() -> None:
    if not session.the_worker().queue():
        st.rerun()


def _switch() -> None:
    """Begin with a new seed; or stop."""
    state = st.session_state
    sketch = _sketch()
    if sketch is not None and sketch.active:
        session.the_worker().cancel(sketch)
    for key in (SEED, REQUEST, PROBLEM, WAITS):
        state.pop(key, None)


# --- Showing


def _sketch() -> Job | None:
    return session.the_worker().job(st.session_state.get(SKETCH))


def _latest() -> Job | None:
    """The last sketch that was finished, if no other picture came after it."""
    latest = session.the_worker().job(st.session_state.get(LATEST))
    return None if latest is None or _older(latest, session.current_job()) else latest


def _older(sketch: Job, job: Job | None) -> bool:
    return job is not None and sketch.ended is not None and sketch.ended < (job.ended or 0.0)


def _finished(job: Job) -> bool:
    return bool(job.pictures) and job.pictures[0].finished


def _watch(job_id: str) -> None:
    """Show the sketch before, which stays until the new one is there."""
    job = session.the_worker().job(job_id)
    if job is None or not job.active:
        st.rerun()
    if (latest := _latest()) is not None:
        _show(latest.id)
    elif job.frame is not None and job.frame.decoded is not None:
        st.image(data_url(job.frame.decoded), width="stretch", alt="The current estimate of the sketch")


def _show(job_id: str) -> None:
    job = session.the_worker().job(job_id)
    if job is None:
        return
    picture = job.pictures[0]
    data = picture.path.read_bytes() if picture.path is not None and picture.there else picture.unsaved
    if data is None:
        return
    source, kind = shown.for_browser(data)
    st.image(source, width="stretch", output_format=kind, alt=f"Sketch, seed {picture.seed}")
    with st.container(horizontal=True, vertical_alignment="center"):
        if picture.path is None and st.button("Keep this one", icon=":material/save:", help="Save it"):
            _keep(job)
        said = f"Saved as {picture.path.name}" if picture.path else "Not saved"
        st.caption(session.plain(f"{said} · seed {picture.seed} · {job.elapsed:.2f} s"))


def _keep(job: Job) -> None:
    worker = session.the_worker()
    try:
        task = worker.keep(job, job.pictures[0])
    except StableDiffusionError as error:
        st.error(session.plain(in_plain_words(error)), icon=":material/error:")
        return
    session.wait_for(task)
    if task.error:
        st.error(session.plain(task.error), icon=":material/error:")
    else:
        st.rerun()
