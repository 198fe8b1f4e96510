"""Train: pictures dropped here become a LoRA or a word; the loss and samples as it learns, stopped and resumed."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import altair
import streamlit as st

from stable_diffusion.checks import Choice, Flag, Number, Text, Whole
from stable_diffusion.errors import StableDiffusionError
from stable_diffusion.pictures.formats import UPLOADS
from stable_diffusion.pictures.reading import open_picture
from stable_diffusion.service import teaching
from stable_diffusion.service.jobs import State
from stable_diffusion.service.preview import data_url, jpeg
from stable_diffusion.service.teaching import Asked, Example, Teaching
from stable_diffusion.service.words import in_plain_words
from stable_diffusion.training.runs import Option
from stable_diffusion.webui.components import details, live, session
from stable_diffusion.webui.components.fields import sentence
from stable_diffusion.webui.components.model_choice import model_or_default

REFRESH = 0.7  # seconds
COUNTABLE = 2**53 - 1  # by a browser
MINUTES, STEPS = "Minutes", "Steps"
MAX_THUMBNAILS, MAX_POINTS = 24, 400
FEW_POINTS = 8  # of which no smooth line is drawn
THUMBNAIL = 72  # pixels
FIRST = ("trigger", "caption", "initial", "class_caption")  # asked for next to the pictures
WHAT = {
    "lora": "A small file that changes the model: for a subject or a style. The usual choice.",
    "dreambooth": "A subject of a known kind (this dog among dogs). The model paints pictures of the kind first, and "
    "learns from these too, so that it does not forget what the kind looks like.",
    "inversion": "A new word for something that the model can nearly paint already. The model stays as it is; the "
    "file is tiny.",
}  # fmt: skip
state = st.session_state


def show() -> None:
    """Draw the page."""
    left, right = st.columns(2, gap="large")
    with left:
        _ask()
    with right:
        _work()
        _past()


# --- What to train


def _ask() -> None:
    model = model_or_default()
    st.caption(f"Teaches {session.plain(model.title)}; choose another model on the left.")
    run = st.segmented_control(
        "What", list(WHAT), format_func=lambda name: _capital(teaching.TEACHING[name].title),
        default=None if "teaching_run" in state else "lora", required=True, key="teaching_run", persist_state="session",
    )  # fmt: skip
    run = run or "lora"
    st.caption(WHAT[run])
    name = st.text_input(
        "Name", key="teaching_name", max_chars=60, persist_state="session", placeholder="my-lantern",
        help="Of the file. For a textual inversion it is also the word to write in prompts.",
    )  # fmt: skip
    examples = _examples()
    values = _options(run, model.source)
    minutes, steps = _limit()
    # No callback: it would be given what the page showed before the field that was just left.
    if st.button(
        "Train", type="primary", width="stretch", disabled=not (name and examples) or _active(),
        help="Pictures that are asked for meanwhile are painted first, between two steps.",
    ):  # fmt: skip
        _begin(Asked(run, name.strip(), model.name, minutes, steps, values), examples)


def _examples() -> list[Example]:
    uploads = st.file_uploader(
        "Pictures to learn from, and captions", type=[*UPLOADS, "txt"], accept_multiple_files=True,
        key="teaching_uploads",
        help="Five to twenty pictures of one subject or style. A caption is a text file of the picture's name: "
        "lantern.png, lantern.txt.",
    )  # fmt: skip
    examples = [Example(each.name, each.getvalue()) for each in uploads or ()]
    pictures = [each for each in examples if not each.is_caption]
    if pictures:
        shown = st.container(horizontal=True, gap="small")
        for each in pictures[:MAX_THUMBNAILS]:
            if small := _thumbnail(each.data):
                shown.container(width=THUMBNAIL).image(small, width="stretch", alt=details.one_line(each.name, 60))
            else:
                shown.caption(session.plain(f"{details.one_line(each.name, 60)} cannot be opened"), width="content")
        captions = len(examples) - len(pictures)
        more = f" (the first {MAX_THUMBNAILS} are shown)" if len(pictures) > MAX_THUMBNAILS else ""
        st.caption(f"{len(pictures)} pictures{more}, {captions} captions")
    return examples


@st.cache_data(max_entries=200, show_spinner=False)
def _thumbnail(data: bytes) -> str:
    """A small picture's address, or "" for what cannot be opened, which the training will skip."""
    try:
        picture = open_picture(data)
    except StableDiffusionError:
        return ""
    picture.thumbnail((2 * THUMBNAIL, 2 * THUMBNAIL))
    return data_url(jpeg(picture))


def _options(run: str, model: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    every = teaching.options_for(teaching.TEACHING[run], model)
    for option in (each for each in every if each.name in FIRST):
        found[option.name] = _option(run, option)
    with st.expander("Settings"):
        for option in (each for each in every if each.name not in FIRST and not each.rare):
            found[option.name] = _option(run, option)
    with st.expander("More settings"):
        for option in (each for each in every if each.rare):
            found[option.name] = _option(run, option)
    return {name: value for name, value in found.items() if value not in (None, "")}


def _option(run: str, option: Option) -> Any:
    """The widget of an option: its check says which."""
    check, label = option.check, _capital(option.name.replace("_", " "))
    default: Any = option.default
    words = session.plain(sentence(option.help))
    # A default that differs between models makes it another widget.
    key = f"teaching-{run}-{option.name}" + ("" if default is None else f"-{default}")
    keep: dict[str, Any] = {"key": key, "help": words, "persist_state": "session"}
    if isinstance(check, Flag):
        return st.toggle(label, bool(default), **keep)
    if isinstance(check, Choice):
        return st.selectbox(label, check.options, check.options.index(default), **keep)
    if isinstance(check, Whole):
        return st.number_input(label, check.low, min(check.high, COUNTABLE), default, step=check.multiple, **keep)
    if isinstance(check, Number):
        low, high = float(check.low), check.high if math.isfinite(check.high) else None
        start = None if default is None else float(default)
        return st.number_input(label, low, high and float(high), start, step=None, format="%g", **keep)
    if isinstance(check, Text):
        return st.text_input(label, default or "", max_chars=1000, **keep)
    return None


def _limit() -> tuple[float | None, int | None]:
    with st.container(horizontal=True, vertical_alignment="bottom"):
        how = st.segmented_control(
            "How long", [MINUTES, STEPS], default=None if "teaching_how" in state else MINUTES, required=True,
            key="teaching_how", persist_state="session",
        )  # fmt: skip
        if how == STEPS:
            return None, int(st.number_input(STEPS, 1, 10**6, 500, key="teaching_steps", persist_state="session"))
        minutes = st.number_input(
            MINUTES, 0.5, 10_000.0, 10.0, step=None, key="teaching_minutes", persist_state="session"
        )
        return float(minutes), None


def _active() -> bool:
    work = teaching.latest(session.the_worker())
    return work is not None and work.task.active


def _begin(asked: Asked, examples: list[Example]) -> None:
    try:
        Teaching(session.the_worker(), teaching.begin(asked, examples))
    except (StableDiffusionError, OSError) as error:
        st.toast(session.plain(in_plain_words(error)), icon=":material/error:")
        return
    st.rerun()


# --- How it goes


def _work() -> None:
    work = teaching.latest(session.the_worker())
    if work is None:
        st.caption("The loss and sample pictures appear here. You can go on painting meanwhile.")
    elif work.task.active:
        st.fragment(_watch, run_every=REFRESH)(work)
    else:
        _over(work)


def _watch(work: Teaching) -> None:
    task, worker = work.task, session.the_worker()
    if not task.active:
        st.rerun()
    position = worker.position(task)
    note = f"Queued, position {position}" if position else task.note or "Starting"
    if task.state is State.PAUSED:
        note += ", waits while a picture is painted"
    elif work.progress is not None and math.isfinite(work.progress.seconds_left):
        note += f", {live.duration(work.progress.seconds_left)} left"
    st.progress(min(1.0, max(0.0, task.fraction)), text=session.plain(note))
    st.button(
        "Stopping" if task.cancelling else "Stop", disabled=task.cancelling, on_click=worker.cancel, args=(task,),
        help="What it has learnt so far is kept, and the run can be resumed.",
    )  # fmt: skip
    _figures(work)


def _figures(work: Teaching) -> None:
    """What was skipped, the loss so far, and the newest samples."""
    if skipped := work.asked.skipped:
        names = details.one_line(", ".join(skipped), 300)
        st.warning(session.plain(f"Skipped {len(skipped)} pictures: {names}"), icon=":material/warning:")
    points = work.losses[:: math.ceil(len(work.losses) / MAX_POINTS) or 1]
    if len(points) > 1:
        rows = altair.Data(values=[{"step": step, "loss": loss} for step, loss in points])
        chart = altair.Chart(rows, height=180, description=f"The loss after {points[-1][0]} steps")
        line = chart.mark_line(strokeWidth=2.5).encode(
            altair.X("step:Q").title("step"), altair.Y("loss:Q").title("loss").scale(zero=False)
        )
        if len(points) > FEW_POINTS:
            smooth = line.transform_loess("step", "loss", bandwidth=0.3)
            line = line.mark_line(strokeWidth=1, opacity=0.45) + smooth
        st.altair_chart(line, width="stretch")
    if work.sheet is not None:
        try:
            st.image(data_url(work.sheet.read_bytes()), width="stretch", alt="Samples of what it has learnt so far")
        except OSError:
            st.caption("The samples were deleted.")


def _over(work: Teaching) -> None:
    asked, task = work.asked, work.task
    if task.state is State.FAILED:
        st.error(session.plain(task.error), icon=":material/error:")
    elif task.state is State.CANCELLED:
        st.info("Stopped. Its state is kept: resume it below.", icon=":material/info:")
    if asked.installed.is_file():
        if task.state is State.DONE:
            st.success(f"{session.plain(asked.name)} has been learnt.", icon=":material/check:")
        st.markdown("Write this into a prompt to use it:")
        trigger = asked.values.get("trigger")
        st.code(f"{asked.tag} {trigger}" if trigger else asked.tag, language=None)
        st.download_button(
            "Download", data=asked.installed.read_bytes, file_name=asked.installed.name, on_click="ignore",
            mime="application/octet-stream", icon=":material/download:", key="teaching_download",
        )  # fmt: skip
    _figures(work)


# --- Runs that can be resumed


def _past() -> None:
    past = {asked.name: asked for asked in teaching.past()}
    if not past:
        return
    work = teaching.latest(session.the_worker())
    if work is not None and state.get("teaching_offered") != work.task.id and work.asked.name in past:
        state["teaching_offered"], state["teaching_past"] = work.task.id, work.asked.name
    if state.get("teaching_past") not in past:
        state["teaching_past"] = next(iter(past))
    with st.expander("Resume a run", expanded=work is None):
        asked = past[
            st.selectbox("Run", [*past], format_func=lambda name: _line(past[name]), key="teaching_past",
                         width="stretch")
        ]  # fmt: skip
        unit = MINUTES if asked.steps is None else STEPS
        more = st.number_input(
            f"{unit}, all sessions together", 1, 10**6, max(1, round(asked.minutes or asked.steps or 1)),
            key=f"teaching-more-{asked.name}",
        )  # fmt: skip
        with st.container(horizontal=True):
            resume = st.button("Resume", disabled=_active())
            st.button(
                "Delete", disabled=_active(), on_click=teaching.delete, args=(asked,),
                help="Deletes its pictures and state. What it has taught stays.",
            )  # fmt: skip
        if resume:
            _resume(asked, unit, more)


def _line(asked: Asked) -> str:
    return f"{asked.name}: {teaching.TEACHING[asked.run].title}, {asked.model}"


def _resume(asked: Asked, unit: str, more: int) -> None:
    try:
        limit: dict[str, Any] = {"minutes": more} if unit == MINUTES else {"steps": more}
        asked = replace(asked, **limit)
        teaching.note(asked)
        Teaching(session.the_worker(), asked)
    except (StableDiffusionError, OSError) as error:
        st.toast(session.plain(in_plain_words(error)), icon=":material/error:")
        return
    st.rerun()


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
