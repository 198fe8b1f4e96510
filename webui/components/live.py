"""The panel that shows this tab's job: step by step while it runs, then the pictures and a replay of their steps."""

import streamlit as st

from webui.components import session
from webui.jobs import Frame, Job, Picture, State
from webui.preview import data_url

REFRESH = 0.2  # seconds
MAX_SHOWN = 640  # pixels: how wide a picture is shown at most


def panel() -> None:
    """Draw the panel; while a job is active it refreshes itself, and the whole page once when the job ends."""
    job = session.shown_job()
    if job is None:
        _welcome()
        return
    st.fragment(_watch if job.active else _result, run_every=REFRESH if job.active else None)(job.id)


def _welcome() -> None:
    with st.container(border=True):
        st.markdown("**Nothing painted yet**")
        st.caption("Describe a picture, then press Generate or Ctrl + Enter. Every step will show here.")


def _watch(job_id: str) -> None:
    job = session.the_worker().job(job_id)
    if job is None or not job.active:
        st.rerun()
    _progress(job)
    frame = job.frame
    if frame is not None:
        _show_frame(frame, f"step {frame.index} of {frame.total}")
    _thumbnails([picture for picture in job.pictures if picture.finished])


def _progress(job: Job) -> None:
    if job.state is State.QUEUED:
        position = session.the_worker().position(job)
        st.progress(0.0, text=f"Queued, position {max(position, 1)}")
    elif job.state is State.LOADING or job.frame is None:
        note = session.plain(job.note) if job.note else "Reading the prompt"
        st.progress(min(1.0, max(0.0, job.note_fraction or 0.0)) if job.note else 0.0, text=note)
    else:
        st.progress(job.fraction, text=progress_in_words(job))


def progress_in_words(job: Job) -> str:
    """Say how far a running job is."""
    frame = job.frame
    assert frame is not None
    parts = [f"Step {frame.index} of {frame.total}"]
    if job.request.n_images > 1:
        parts.insert(0, f"Picture {len(job.pictures)} of {job.request.n_images}")
    if job.cancelling:
        return " · ".join([*parts, "cancelling"])
    if job.seconds_left is not None and job.seconds_left >= 0.5:
        parts.append(f"{duration(job.seconds_left)} left")
    if job.steps_per_second is not None:
        pace = job.steps_per_second
        parts.append(f"{pace:.1f} steps/s" if pace >= 1 else f"{1 / pace:.1f} s a step")
    return " · ".join(parts)


def duration(seconds: float) -> str:
    """Say a time span shortly: 8 s, 2 min 5 s, 1 h 20 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _show_frame(frame: Frame, where: str) -> None:
    st.image(data_url(frame.estimate), width="stretch", alt=f"The current estimate of the picture, {where}")
    st.caption("The model's current estimate of the picture, x₀")
    st.image(data_url(frame.latents), width="stretch", alt=f"The channels of the latents, {where}")
    st.caption(f"The latents xₜ, channel by channel, at noise level σ = {frame.sigma:.3g}")


def _thumbnails(pictures: list[Picture]) -> None:
    if pictures:
        columns = st.columns(max(4, len(pictures)))
        for column, picture in zip(columns, pictures, strict=False):
            column.image(_source(picture), width="stretch", alt=f"Finished picture, small, seed {picture.seed}")


def _result(job_id: str) -> None:
    job = session.the_worker().job(job_id)
    pictures = [] if job is None else [picture for picture in job.pictures if picture.frames]
    if job is None or not pictures:
        _welcome()
        return
    if job.state is State.CANCELLED:
        done = sum(picture.finished for picture in job.pictures)
        st.caption(f"Cancelled. Finished before that: {done} of {job.request.n_images}.")
    picture = _choose(job.id, pictures)
    if picture.finished:
        st.image(_source(picture), width="stretch", output_format="PNG", alt=f"Finished picture, seed {picture.seed}")
        _download(job, picture)
    _replay(job, picture)


def _choose(job_id: str, pictures: list[Picture]) -> Picture:
    if len(pictures) == 1:
        return pictures[0]
    _thumbnails([picture for picture in pictures if picture.finished])
    chosen = st.segmented_control(
        "Picture",
        range(len(pictures)),
        default=0,
        required=True,
        format_func=lambda i: f"{i + 1}" if pictures[i].finished else f"{i + 1} (unfinished)",
        key=f"picture-{job_id}",
    )
    return pictures[chosen or 0]


def _download(job: Job, picture: Picture) -> None:
    name = picture.path.name if picture.path else f"{job.id}-{picture.seed}.png"
    with st.container(horizontal=True, vertical_alignment="center"):
        st.download_button(
            "Download",
            data=lambda: _bytes(picture),
            file_name=name,
            mime="image/png",
            on_click="ignore",
            icon=":material/download:",
        )
        st.caption(f"Seed {picture.seed} · {picture.size[0]} × {picture.size[1]} · {duration(job.elapsed)}")


def _replay(job: Job, picture: Picture) -> None:
    frames = picture.frames
    with st.expander("Replay the denoising", expanded=not picture.finished):
        at = len(frames)
        if at > 1:
            at = st.slider("Step", 1, at, value=at, key=f"replay-{job.id}-{job.pictures.index(picture)}")
        frame = frames[at - 1]
        _show_frame(frame, f"step {frame.index} of {frame.total}")


def _source(picture: Picture) -> str | bytes:
    if picture.path is not None and picture.path.exists():
        return str(picture.path)
    return picture.unsaved or data_url(picture.frames[-1].estimate)


def _bytes(picture: Picture) -> bytes:
    if picture.path is not None and picture.path.exists():
        return picture.path.read_bytes()
    return picture.unsaved or b""
