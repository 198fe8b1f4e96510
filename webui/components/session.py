"""The one worker behind all tabs, and what this tab remembers: its settings, its job, its input picture."""

import os
from pathlib import Path

import streamlit as st
from PIL import Image

import models
from webui.jobs import Job, Request
from webui.worker import Worker

ROOT = Path(__file__).resolve().parents[2]
RANDOM_SEED = -1
USUAL_SIDES = {"sdxl": 1024}  # pixels, where the catalogue names none


@st.cache_resource(on_release=lambda made: made.close())
def the_worker() -> Worker:
    """The worker of this server: one, whatever the number of tabs."""
    return Worker(Path(os.environ.get("STABLE_DIFFUSION_OUTPUTS") or ROOT / "outputs"))


def current_job() -> Job | None:
    """The job that this tab shows: kept over page switches in the session, over a reload in the address."""
    job_id = st.session_state.get("job_id") or st.query_params.get("job")
    return the_worker().job(job_id)


def shown_job() -> Job | None:
    """The job whose pictures this tab shows: the current one, or the last with pictures where that one came to none."""
    job = current_job()
    if job is not None and (job.active or job.frame is not None):
        st.session_state["shown_id"] = job.id
        return job
    return the_worker().job(st.session_state.get("shown_id"))


def show_job(job: Job) -> None:
    """Make this tab show a job from now on."""
    st.session_state["job_id"] = job.id


def begin() -> None:
    """Fill in the settings where this session has none: those of the job in the address, or the default model's."""
    job = current_job()
    if "model" not in st.session_state:
        if job is not None:
            recall(job.request)
        else:
            st.session_state.update(
                model=models.DEFAULT, prompt="", negative="", seed=RANDOM_SEED, n_images=1, preview="auto"
            )
            apply_defaults()
    if job is not None:
        st.session_state["job_id"] = job.id
        if st.query_params.get("job") != job.id:
            st.query_params["job"] = job.id
    elif "job" in st.query_params:
        del st.query_params["job"]


def apply_defaults() -> None:
    """Set steps, guidance and size to what the chosen model does best."""
    model = models.find(st.session_state["model"])
    defaults = model.defaults
    side = USUAL_SIDES.get(model.family, 512)
    st.session_state.update(
        steps=defaults.steps,
        cfg=float(defaults.cfg),
        sampler=defaults.sampler,
        strength=defaults.strength,
        width=defaults.width or side,
        height=defaults.height or side,
    )


def recall(request: Request) -> None:
    """Put a request's values back into the form."""
    st.session_state["model"] = request.model
    apply_defaults()
    st.session_state.update(
        prompt=request.prompt,
        negative=request.negative,
        sampler=request.sampler,
        steps=request.steps,
        cfg=request.cfg,
        seed=RANDOM_SEED if request.seed is None else request.seed,
        n_images=request.n_images,
        strength=request.strength,
        preview=request.preview,
    )
    if request.width and request.height:
        st.session_state.update(width=request.width, height=request.height)
    if request.input_picture is not None:
        st.session_state["input_picture"] = request.input_picture


def request_from_form(input_picture: Image.Image | None) -> Request:
    """Gather the form into a request."""
    state = st.session_state
    seed = int(state["seed"])
    return Request(
        prompt=state["prompt"].strip(),
        negative=state["negative"].strip(),
        model=state["model"],
        sampler=state["sampler"],
        steps=int(state["steps"]),
        cfg=float(state["cfg"]),
        seed=None if seed == RANDOM_SEED else seed,
        width=int(state["width"]),
        height=int(state["height"]),
        n_images=int(state["n_images"]),
        input_picture=input_picture,
        strength=float(state["strength"]) if input_picture is not None else Request.strength,
        preview=state["preview"],
    )


def plain(text: str) -> str:
    """Escape a text for the places that read Markdown, so that it shows as it was written."""
    escaped = "".join(f"\\{c}" if c in "\\`*_{}[]()<>#+-.!|~$:^&@=\"'" else c for c in text)
    return escaped.replace("\n", "  \n")
