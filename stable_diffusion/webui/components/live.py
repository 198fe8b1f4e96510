"""The panel that shows this tab's job: each step while it runs, then the pictures and a replay of their steps."""

import io
from collections.abc import Sequence

import streamlit as st
from PIL import Image

from stable_diffusion.errors import StableDiffusionError
from stable_diffusion.pictures import arrays
from stable_diffusion.pictures.formats import format_of
from stable_diffusion.record import picture_files
from stable_diffusion.record.inputs import InputFile
from stable_diffusion.request import Request
from stable_diffusion.service import shown, values
from stable_diffusion.service.jobs import Frame, Job, Picture, State
from stable_diffusion.service.preview import KINDS, data_url, frame_jpeg
from stable_diffusion.webui.components import handover, more_like, session, while_typing, word_maps

REFRESH = 0.2  # seconds
ALL = -1  # in place of a picture's number
BEGINNING = "What painting begins with, xₜ: noise, or a picture with noise in it"
ALTS = {
    "auto": "The current estimate of the picture",
    "fast": "The current estimate of the picture",
    "latents": "The channels of the latents",
    "full": "The current estimate, decoded in full",
}


def panel() -> None:
    """Draw the panel; while a job is active it refreshes itself, and the whole page once when the job ends."""
    if while_typing.panel():
        return
    job = session.shown_job()
    if job is None:
        _welcome()
        return
    st.fragment(_watch if job.active else _result, run_every=REFRESH if job.active else None)(job.id)


def strip() -> None:
    """Draw the job's progress, for pages about something else; nothing if no job is active."""
    job = session.current_job()
    if job is not None and job.active:
        st.divider()
        st.fragment(_watch_strip, run_every=REFRESH)(job.id)


def _watch_strip(job_id: str) -> None:
    job = session.the_worker().job(job_id)
    if job is None or not job.active:
        st.rerun()
    left, right = st.columns([3, 1], vertical_alignment="center")
    with left:
        _progress(job)
    right.button("Cancel", disabled=job.cancelling, on_click=session.the_worker().cancel, args=(job,), width="stretch")


def _welcome() -> None:
    with st.container(border=True):
        st.markdown("**Nothing painted yet**")
        st.caption("Describe a picture, then press Generate or Ctrl + Enter. Every step will show here.")
    st.caption("Or begin with one of these:")
    for example in values.examples(session.chosen_model()):
        # As wide as the panel: on a phone, a narrow one would break words.
        st.button(example, key=f"example-{example}", on_click=session.put, args=({"prompt": example},), width="stretch")


def _watch(job_id: str) -> None:
    job = session.the_worker().job(job_id)
    if job is None or not job.active:
        st.rerun()
    _progress(job)
    frame = job.frame
    if frame is not None:
        _show_frame(job, frame, job.request.previews)
    _grid([picture for picture in job.pictures if picture.finished], columns=4)


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
    if frame.n_passes > 1:
        parts.insert(0, f"Pass {frame.pass_number} of {frame.n_passes}")
    if job.n_images > 1:
        parts.insert(0, f"Picture {len(job.pictures)} of {job.n_images}")
    if job.cancelling:
        return " · ".join([*parts, "cancelling"])
    if job.note:
        parts.append(f"{session.plain(job.note)} {job.note_fraction or 0:.0%}")
    if job.elapsed >= 0.5:
        parts.append(f"{duration(job.elapsed)} elapsed")
    if job.seconds_left is not None and job.seconds_left >= 0.5:
        parts.append(f"{duration(job.seconds_left)} left")
    if job.steps_per_second is not None:
        pace = job.steps_per_second
        parts.append(f"{pace:.1f} steps/s" if pace >= 1 else f"{1 / pace:.1f} s a step")
    return " · ".join(parts)


def duration(seconds: float) -> str:
    """A time span in few words: 8 s, 2 min 5 s, 1 h 20 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _show_frame(job: Job, frame: Frame, kinds: Sequence[str]) -> None:
    """Draw a step as each of these kinds, side by side."""
    where = f"before step {frame.index + 1}" if frame.begins else f"step {frame.index}"
    where += f" of {frame.total}"
    if frame.n_passes > 1:
        where += f", pass {frame.pass_number} of {frame.n_passes}"
    views = [(kind, found) for kind in KINDS if kind in kinds and (found := _jpeg(job, frame, kind)) is not None]
    if not views:
        return
    widths = [1 if kind == "latents" else 2 for kind, _ in views]
    for column, (kind, (jpeg, words)) in zip(st.columns(widths), views, strict=True):
        what = "What painting begins with" if frame.begins and kind != "latents" else ALTS[kind]
        column.image(data_url(jpeg), width="stretch", alt=f"{what}, {where}")
        column.caption(words)


def _jpeg(job: Job, frame: Frame, kind: str) -> tuple[bytes, str] | None:
    """A step as one kind, with a caption; while a job runs, the newest decode stands in for newer steps."""
    estimate = BEGINNING if frame.begins else "The model's current estimate of the picture, x₀"
    if kind in ("auto", "full"):
        newer = job.active and job.pictures and not frame.begins
        for other in reversed([each for each in job.pictures[-1].frames if not each.begins] if newer else [frame]):
            if other.decoded is not None:
                return other.decoded, f"{estimate}, decoded in full"
            if other.draft is not None and kind == "auto" and (job.drafting or not job.active):
                return other.draft, f"{estimate}, as a draft"
        if kind == "full":
            return None
    jpeg = frame_jpeg(frame, "latents" if kind == "latents" else "fast", job.latent_space)
    if jpeg is None:
        return (frame.decoded, f"{estimate}, decoded in full") if frame.decoded is not None else None
    if kind == "latents":
        return jpeg, f"The latents xₜ, channel by channel, at noise level σ = {frame.sigma:.3g}"
    return jpeg, f"{estimate}, in approximate colours"


def _grid(pictures: Sequence[Picture], columns: int) -> None:
    for i in range(0, len(pictures), columns):
        row = pictures[i : i + columns]
        for column, picture in zip(st.columns(columns), row, strict=False):
            source, kind = shown.for_browser(_bytes(picture))
            alt = f"Finished picture, small, seed {picture.seed}"
            column.image(source, width="stretch", output_format=kind, alt=alt)


def _result(job_id: str) -> None:
    job = session.the_worker().job(job_id)
    pictures = [] if job is None else [picture for picture in job.pictures if picture.visible]
    if job is None or not pictures:
        st.rerun()
    if job.state is State.CANCELLED:
        done = sum(picture.finished for picture in job.pictures)
        st.caption(f"Cancelled. Finished before that: {done} of {job.n_images}.")
    picture = _choose(job.id, pictures)
    if picture is None:
        finished = [picture for picture in pictures if picture.finished]
        _grid(finished, columns=2)
        _download_sheet(job, finished)
        return
    if picture.finished:
        source, kind = shown.for_browser(_bytes(picture))
        st.image(source, width="stretch", output_format=kind, alt=f"Finished picture, seed {picture.seed}")
        _download(job, picture)
    else:
        _keep(job, picture)
    if not picture.frames:
        return
    if picture.attention is None:
        with st.expander("Replay the denoising", expanded=not picture.finished):
            _replay(job, picture)
        return
    words, steps = st.tabs(["Where each word acts", "Replay the denoising"])
    with words:
        word_maps.draw(job, picture, picture.attention)
    with steps:
        _replay(job, picture)


def _choose(job_id: str, pictures: list[Picture]) -> Picture | None:
    """The picture to show, or None for all of them."""
    if len(pictures) == 1:
        return pictures[0]
    several = sum(picture.finished for picture in pictures) > 1
    options = [ALL, *range(len(pictures))] if several else [*range(len(pictures))]

    def name(i: int) -> str:
        if i == ALL:
            return "All"
        return f"{i + 1}" if pictures[i].finished else f"{i + 1} (unfinished)"

    chosen = st.segmented_control(
        "Picture", options, default=options[0], required=True, format_func=name, key=f"picture-{job_id}"
    )
    return None if chosen == ALL else pictures[chosen or 0]


def _download(job: Job, picture: Picture) -> None:
    name = picture.path.name if picture.path else f"{job.id}-{picture.seed}.png"
    with st.container(horizontal=True, vertical_alignment="center"):
        st.download_button(
            "Download",
            data=lambda: _bytes(picture),
            file_name=name,
            mime=form.mime if (form := format_of(name)) else None,
            on_click="ignore",
            icon=":material/download:",
        )
        # Not in a callback: this is a fragment, and only a full run can switch pages.
        if st.button("Send to image to image", icon=":material/image:", help="Start the next picture from this one"):
            handover.send(None, lambda: InputFile(name, _bytes(picture)))
            st.rerun()
        if st.button("Send to inpaint", icon=":material/brush:", help="Paint over what should change in this picture"):
            handover.send(None, lambda: InputFile(name, _bytes(picture)), handover.INPAINT_PAGE)
            st.rerun()
        if st.button("Upscale", icon=":material/zoom_out_map:", help="Enlarge this picture"):
            handover.upscale(lambda: InputFile(name, _bytes(picture)))
            st.rerun()
        more_like.of_picture(job, picture)
        st.caption(f"Seed {picture.seed} · {picture.size[0]} × {picture.size[1]} · {duration(job.elapsed)}")


def _keep(job: Job, picture: Picture) -> None:
    """Offer to save a picture that was stopped, as far as it came."""
    worker = session.the_worker()
    if not st.button("Keep the picture so far", help="Decode the last estimate, and save it as a picture"):
        return
    try:
        task = worker.keep(job, picture)
    except StableDiffusionError as error:
        st.error(session.plain(str(error)), icon=":material/error:")
        return
    session.wait_for(task)
    if task.error:
        st.error(session.plain(task.error), icon=":material/error:")
    elif task.active:
        st.caption("It is saved when the step that is being computed, and what is loaded for it, is done.")
    else:
        st.rerun()


def _download_sheet(job: Job, pictures: list[Picture]) -> None:
    with st.container(horizontal=True, vertical_alignment="center"):
        st.download_button(
            "Download as one sheet",
            data=lambda: _sheet(pictures),
            file_name=f"{job.id}.png",
            mime="image/png",
            on_click="ignore",
            icon=":material/download:",
        )
        st.caption(f"{len(pictures)} pictures · {duration(job.elapsed)}")


def _replay(job: Job, picture: Picture) -> None:
    frames = picture.frames
    key = f"{job.id}-{job.pictures.index(picture)}"
    at = len(frames) - 1
    if at > 0 and frames[-1].n_passes == 1:
        at = st.slider("Step", 0, at, value=at, key=f"replay-{key}")
    elif at > 0:
        at = st.select_slider(
            "Step", range(len(frames)), value=at, format_func=lambda i: _moment(frames[i]), key=f"replay-{key}"
        )
    kinds = st.pills(
        "Show",
        list(KINDS),
        selection_mode="multi",
        default=[kind for kind in KINDS if kind in (job.request.previews or Request.previews)],
        format_func=KINDS.__getitem__,
        key=f"kinds-{key}",
    )
    frame = frames[at]
    if frame.decoded is None and ("full" in kinds or ("auto" in kinds and job.quick)):
        _decode(job, frame, asked="full" in kinds)
    _show_frame(job, frame, kinds)


def _moment(frame: Frame) -> str:
    return f"pass {frame.pass_number}" if frame.begins else str(frame.index)


def _decode(job: Job, frame: Frame, asked: bool) -> None:
    """Have a step decoded, and wait briefly for it; report a failure only if the decode was requested."""
    worker = session.the_worker()
    try:
        task = worker.decode(job, frame)
    except StableDiffusionError as error:
        if asked:
            st.caption(session.plain(str(error)))
        return
    session.wait_for(task)
    if not asked:
        return
    if task.error:
        st.caption(session.plain(task.error))
    elif task.active:
        st.caption("The full decode waits for what is being painted.")
        st.button("Look again")


def _bytes(picture: Picture) -> bytes:
    if picture.path is not None and picture.path.exists():
        return picture.path.read_bytes()
    return picture.unsaved or (picture.estimate.decoded if picture.estimate else None) or b""


def _sheet(pictures: list[Picture]) -> bytes:
    """All pictures on a PNG, with the record of the first one, as A1111's grids have it."""
    files = [_bytes(picture) for picture in pictures]
    sheet = arrays.grid([Image.open(io.BytesIO(file)) for file in files], gap=4)
    return picture_files.encoded(sheet, ".png", picture_files.read_parameters(io.BytesIO(files[0])))
