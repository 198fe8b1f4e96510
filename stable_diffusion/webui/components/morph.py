"""The page "Morph": stations, each a prompt with a seed, and the frames that lead through them."""

from __future__ import annotations

import dataclasses
import secrets
from functools import partial

import streamlit as st

from stable_diffusion import morph
from stable_diffusion.checks import MAX_SEED, Whole
from stable_diffusion.errors import InputError, StableDiffusionError
from stable_diffusion.morph import Morph
from stable_diffusion.record import film
from stable_diffusion.service import values
from stable_diffusion.service.films import film_of
from stable_diffusion.service.jobs import Morphing
from stable_diffusion.service.words import in_plain_words
from stable_diffusion.webui.components import (
    field_guard,
    form,
    live,
    model_choice,
    morph_player,
    series,
    session,
    style_choice,
)

REFRESH = 1.0  # seconds
MANY = 100  # frames; more are asked about before
MAX_PER_STRETCH, MAX_SPEED = 240, 30
MAX_STATIONS = 20
EASINGS = {"linear": "Even", "in-out": "Slow near stations", "in": "Slow start", "out": "Slow end"}
FILMS = {".gif": ("GIF", "image/gif"), ".webp": ("WebP", "image/webp"), ".mp4": ("MP4", "video/mp4")}


def draw() -> None:
    """Draw the page."""
    _begin()
    left, right = st.columns([2, 3], gap="large")
    with left:
        _form()
    with right, st.container(key="live"):
        job = _job()
        if job is None:
            with st.container(border=True):
                st.markdown("**No morph yet**")
                st.caption("Describe where it begins and where it leads, then press Paint frames.")
        else:
            st.fragment(_result, run_every=REFRESH if job.active else None)(job.id)


def _begin() -> None:
    """Fill in two stations on the first visit, and what has no value yet."""
    state = st.session_state
    if "morph_stations" not in state:
        state["morph_stations"] = []
        for text in values.morph_examples(session.chosen_model()):
            _add(text)
    fresh = {"morph_frames": 8, "morph_fps": 8, "morph_loop": False, "morph_easing": "linear", "morph_to": 0.9}
    for key, value in fresh.items():
        state.setdefault(key, value)


def _job() -> Morphing | None:
    """The morph that this tab shows: its own, or the one that was queued last."""
    return series.job_of("morph_id", Morphing, session.the_worker().latest_morph())


# --- The form


def _form() -> None:
    state = st.session_state
    for place, name in enumerate(state["morph_stations"]):
        _station(place, name)
    st.button("Add a station", icon=":material/add:", on_click=_add, args=("",), width="stretch",
              disabled=len(state["morph_stations"]) >= MAX_STATIONS)  # fmt: skip
    form.negative()
    style_choice.draw()
    with st.container(horizontal=True):
        st.number_input(
            "Frames from station to station", 2, MAX_PER_STRETCH, key="morph_frames", persist_state="session",
            help="Both stations included",
        )  # fmt: skip
        st.selectbox("Pace", list(EASINGS), key="morph_easing", format_func=EASINGS.__getitem__,
                     persist_state="session")  # fmt: skip
    st.toggle("Return to the first station", key="morph_loop", persist_state="session",
              help="A loop, to play without end. Through two stations it returns on the same frames.")  # fmt: skip
    _start()
    _total()
    field_guard.draw()
    job = _job()
    with st.container(horizontal=True):
        st.button("Paint frames", type="primary", shortcut="Ctrl+Enter", on_click=_paint, width="stretch")
        st.button("Stop", disabled=job is None or not job.active, on_click=series.stop, args=(job,), width="stretch",
                  help="Finished frames are kept, and the same morph goes on with the others")  # fmt: skip
    if problem := state.get("morph_problem"):
        st.error(session.plain(problem), icon=":material/error:")


def _station(place: int, name: str) -> None:
    """Draw one station; `name` tells it from others, wherever it stands."""
    n = place + 1
    last = len(st.session_state["morph_stations"]) - 1
    with st.container(border=True, key=f"station-{name}"):
        st.text_area(f"Prompt of station {n}", key=f"morph_prompt_{name}", height=68, persist_state="session")
        with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
            st.text_input(
                f"Seed of station {n}", key=f"morph_seed_{name}", max_chars=24, placeholder="the sidebar's", width=140,
                help="Empty: the sidebar's seed, so that the noise stays and the prompt alone changes the picture",
                persist_state="session",
            )  # fmt: skip
            for label, words, function, argument, off in (
                ("Random", f"Give station {n} a seed of its own", _randomise, name, False),
                ("Up", f"Move station {n} up", _move, (place, -1), place == 0),
                ("Down", f"Move station {n} down", _move, (place, 1), place == last),
                ("Remove", f"Remove station {n}", _remove, place, last == 0),
            ):
                st.button(label, key=f"{label.lower()}-{name}", type="tertiary", help=words, disabled=off,
                          on_click=function, args=(argument,))  # fmt: skip


def _add(text: str) -> None:
    state, name = st.session_state, secrets.token_hex(3)
    state["morph_stations"] = [*state["morph_stations"], name]
    state[f"morph_prompt_{name}"], state[f"morph_seed_{name}"] = text, ""


def _remove(place: int) -> None:
    names = list(st.session_state["morph_stations"])
    del names[place]
    st.session_state["morph_stations"] = names


def _move(where: tuple[int, int]) -> None:
    names, (place, by) = list(st.session_state["morph_stations"]), where
    names.insert(place + by, names.pop(place))
    st.session_state["morph_stations"] = names


def _randomise(name: str) -> None:
    st.session_state[f"morph_seed_{name}"] = str(secrets.randbelow(2**32))


def _start() -> None:
    """Draw the picture to begin from, and how strongly the frames change it."""
    if not st.toggle("Begin from a picture", key="morph_picture", persist_state="session"):
        return
    form.input_picture()
    if st.toggle("Another strength at the end", key="morph_runs", persist_state="session",
                 help="The denoising strength then changes from frame to frame, in whole steps"):  # fmt: skip
        words = "half way" if st.session_state["morph_loop"] else "of the last frame"
        st.slider(f"Denoising strength {words}", 0.0, 1.0, step=0.05, key="morph_to", persist_state="session")


def _stations() -> tuple[list[str], list[int | None]]:
    """The stations' prompts and seeds. Raises InputError."""
    state, texts, seeds = st.session_state, [], []
    for n, name in enumerate(state["morph_stations"], 1):
        typed = (state.get(f"morph_seed_{name}") or "").strip()
        try:
            seeds.append(Whole(0, MAX_SEED).read(typed) if typed else None)
        except InputError as error:
            raise InputError(f"Seed of station {n}: {error}.") from None
        texts.append((state.get(f"morph_prompt_{name}") or "").strip())
        if not texts[-1]:
            raise InputError(f"Station {n} has no prompt.")
    return texts, seeds


def _plan(seed: int | None = None) -> Morph:
    """The form's morph; `seed` stands for one that the form leaves open. Raises InputError."""
    state = st.session_state
    picture = state.get("input_picture") if state.get("morph_picture") else None
    if state.get("morph_picture") and picture is None:
        raise InputError("Choose a picture to begin from, or switch that off.")
    request = session.request_from_form(picture)
    request = dataclasses.replace(  # without what other pages alone show
        request.first_pass(), prompt="", blend_prompt="", by=None, tile=None,
        width=state["width"], height=state["height"], seed=seed if request.seed is None else request.seed,
    )  # fmt: skip
    runs = picture is not None and state.get("morph_runs")
    return morph.plan(request, *_stations(), state["morph_frames"], state["morph_loop"], state["morph_easing"],
                      state["morph_to"] if runs else None)  # fmt: skip


def _total() -> None:
    """Say how many frames there will be, or what is wrong."""
    try:
        found = _plan()
    except (StableDiffusionError, OSError) as error:
        st.warning(session.plain(in_plain_words(error)), icon=":material/warning:")
        return
    n, fps = len(found.cells), st.session_state["morph_fps"]
    words = f"{n} frames, {n / fps:.1f} seconds at {fps} a second"
    st.caption(words if len(found.order) == n else f"{words}; {len(found.order)} of them are painted")
    if len(found.order) > MANY:
        st.checkbox(f"Paint all {len(found.order)} frames", key="morph_many")


def _paint() -> None:
    state = st.session_state
    state["morph_problem"] = ""
    worker = session.the_worker()
    try:
        field_guard.check()
        if problem := model_choice.why_not(session.chosen_model()):
            state["morph_problem"] = problem
            return
        before = _job()
        plan = _resumed(before)
        if len(plan.order) > MANY and not state.get("morph_many"):
            state["morph_problem"] = f"{len(plan.order)} frames: tick the box if you want to paint all of them."
            return
        known = before.kept() if before is not None else {}
        if before is not None and before.active:
            worker.cancel(before)
        state["morph_id"] = worker.morph(plan, known).id
        state["morph_open"] = None
    except (StableDiffusionError, OSError) as error:
        state["morph_problem"] = in_plain_words(error)


def _resumed(before: Morphing | None) -> Morph:
    """The form's morph, with the seed of the one before if that is unfinished and the same otherwise."""
    if before is not None and (before.active or len(before.finished()) < len(before.morph.order)):
        again = _plan(before.morph.request.seed)
        if {cell.digest for cell in again.cells} & {cell.digest for cell in before.morph.cells}:
            return again
    return _plan()


# --- The frames


def _result(job_id: str) -> None:
    job = series.followed(job_id, Morphing, "morph_watched")
    finished = job.finished()
    series.progress(job, len(finished), len(job.morph.order), "frames", "Paint frames")
    st.slider("Frames per second", 1, MAX_SPEED, key="morph_fps", persist_state="session")
    morph_player.draw(job, st.session_state["morph_fps"], _open)
    if finished and not job.active:
        _downloads(job)
    _opened(job)


def _open(index: int) -> None:
    st.session_state["morph_open"] = index


def _opened(job: Morphing) -> None:
    """Draw the frame that was clicked, and how it was made."""
    index = st.session_state.get("morph_open")
    if not isinstance(index, int) or not 0 <= index < len(job.morph.cells):
        return
    cell = job.morph.cells[index]
    title = morph_player.title(job, index)
    instead = job.problems.get(cell.digest) or "This frame is not painted yet."
    series.opened(title, title, job.picture_of(cell), instead, _close)


def _close() -> None:
    st.session_state["morph_open"] = None


def _downloads(job: Morphing) -> None:
    fps = st.session_state["morph_fps"]
    with st.container(horizontal=True, gap="small"):
        for suffix, (name, mime) in FILMS.items():
            off = suffix == film.MP4 and not film.can_write_mp4()
            st.download_button(
                f"Download {name}", data=partial(film_of, job, suffix, fps), file_name=f"morph{suffix}",
                mime=mime, on_click="ignore", icon=":material/movie:", disabled=off,
                help="Needs the package imageio-ffmpeg: pip install imageio-ffmpeg" if off else None,
            )  # fmt: skip
        st.download_button("Download strip", data=partial(film_of, job, ".png", fps), file_name="morph.png",
                           mime="image/png", on_click="ignore", icon=":material/view_column:")  # fmt: skip
    if job.elapsed:
        st.caption(f"Painted in {live.duration(job.elapsed)}")
