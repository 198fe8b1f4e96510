"""The lessons of the page "How it works": draws what a lesson asks, computes and shows."""

import hashlib
from collections.abc import Sequence
from typing import Any

import streamlit as st
from PIL import Image

from stable_diffusion import catalogue
from stable_diffusion.errors import StableDiffusionError
from stable_diffusion.lessons import lesson as blocks
from stable_diffusion.lessons.chapters import CHAPTERS, LESSONS
from stable_diffusion.lessons.common import Settings
from stable_diffusion.lessons.lesson import Lesson
from stable_diffusion.pictures.formats import UPLOADS
from stable_diffusion.pictures.reading import open_picture
from stable_diffusion.service.jobs import State, Task
from stable_diffusion.service.preview import data_url
from stable_diffusion.webui.components import clickable_drawing, look, session
from stable_diffusion.webui.components.model_choice import model_or_default

REFRESH = 0.3  # seconds
STEPS = 20
SEED = 1
CHOSEN = "lesson"  # the key of the shown lesson, in the session and in the page's address
TOUR = "lesson-tour"  # in the session: the lessons.Tour that the reader is on
CLICKED = "clicked-lesson"  # on the map, to be shown in the next run
TURNED = "turned-lesson"  # in the session, after a step to another lesson
ORDER = list(LESSONS)
_PARTS = {lesson.key: chapter.title for chapter in CHAPTERS for lesson in chapter.lessons}


def draw() -> None:
    """Draw the page."""
    model = model_or_default()
    st.header("How it works")
    lesson = _choice()
    st.subheader(lesson.title)
    st.markdown(lesson.text)
    for equation in lesson.equations:
        st.latex(equation)
    values = {"settings": _settings(model)} | _controls(lesson, lesson.asks)
    found = _computed(lesson, model, values)
    if found is not None:
        values |= _controls(lesson, lesson.views, found)
        _show(lesson, lesson.show(found, values))
    _more(lesson)
    _neighbours(lesson)


def _choice() -> Lesson:
    """The lesson that is asked for by the address, a button or the list."""
    if (clicked := st.session_state.pop(CLICKED, None)) in LESSONS:
        _go(clicked)
    if st.session_state.pop(TURNED, False):
        look.scroll_to_top()
    if st.query_params.get(CHOSEN) in LESSONS and CHOSEN not in st.session_state:
        st.session_state[CHOSEN] = st.query_params[CHOSEN]
    if st.session_state.get(CHOSEN) not in LESSONS:
        st.session_state[CHOSEN] = ORDER[0]
    key = st.selectbox(
        "Lesson",
        ORDER,
        format_func=lambda each: f"{_PARTS[each]}: {LESSONS[each].title}",
        key=CHOSEN,
        persist_state="session",
    )
    st.query_params[CHOSEN] = key
    return LESSONS[key]


def _neighbours(lesson: Lesson) -> None:
    """Buttons to the lessons before and after this one: of the tour, while the reader is on one that passes here."""
    tour: blocks.Tour | None = st.session_state.get(TOUR)
    order = [ORDER[0], *tour.lessons] if tour and lesson.key in tour.lessons else ORDER
    place = order.index(lesson.key)
    with st.container(horizontal=True, vertical_alignment="center"):
        if order is not ORDER and tour:
            st.caption(f"Tour: {tour.name}, {place} of {len(tour.lessons)}")
        for text, other in (("Back", place - 1), ("Next", place + 1)):
            if 0 <= other < len(order):
                title = LESSONS[order[other]].title
                st.button(f"{text}: {title}", key=f"lesson-{text}", on_click=_go, args=(order[other],))
        if order is not ORDER:
            st.button("Leave the tour", on_click=_take, args=(None,))


def _go(key: str) -> None:
    st.session_state.update({CHOSEN: key, TURNED: True})


def _take(tour: blocks.Tour | None) -> None:
    st.session_state[TOUR] = tour
    if tour:
        _go(tour.lessons[0])


def _more(lesson: Lesson) -> None:
    """The code of the running program, and where the idea comes from."""
    if lesson.code:
        with st.expander("The code that does this"):
            st.code(lesson.source(), language="python")
    if lesson.papers:
        st.markdown("From: " + "; ".join(f"[{paper.title}]({paper.link})" for paper in lesson.papers))


# --- Controls


def _controls(lesson: Lesson, controls: Sequence[blocks.Control], found: Any = None) -> dict[str, Any]:
    return {each.key: _control(each, f"{lesson.key}-{each.key}", found) for each in controls}


def _control(control: blocks.Control, key: str, found: Any) -> Any:
    if isinstance(control, blocks.Choose):
        names = control.names(found)
        if not names:
            return None
        return st.selectbox(
            control.label, range(len(names)), control.usual(found), format_func=lambda i: names[i], key=f"{key}-{names}"
        )
    if isinstance(control, blocks.Slider):
        numbers = (control.low, control.high, control.value, control.step)
        whole = all(float(each).is_integer() for each in numbers)
        low, high, value, step = (int(each) if whole else float(each) for each in numbers)
        return st.slider(control.label, low, high, value, step, key=key, persist_state="session")
    if isinstance(control, blocks.Options):
        start = control.options.index(control.value)
        if len(control.options) > 6 or len("".join(map(str, control.options))) > 80:
            return st.selectbox(control.label, control.options, start, key=key, persist_state="session")
        chosen = st.segmented_control(
            control.label, control.options, default=control.value, required=True, key=key, persist_state="session"
        )
        return control.value if chosen is None else chosen
    if isinstance(control, blocks.Words):
        if control.lines:
            return st.text_area(control.label, control.value, height=200, max_chars=4000, key=key)
        return st.text_input(control.label, control.value, max_chars=1000, key=key, persist_state="session")
    return _picture(control.label, key)


def _picture(label: str, key: str) -> Image.Image | None:
    upload = st.file_uploader(label, type=UPLOADS, key=key)
    if upload is None:
        return None
    try:
        return open_picture(upload)
    except StableDiffusionError as error:
        st.error(session.plain(str(error)), icon=":material/error:")
        return None


def _settings(model: catalogue.Model) -> Settings:
    own = model.defaults
    return Settings(own.negative or "", min(STEPS, own.steps), own.cfg, SEED, own.sampler)


# --- The computation


def _computed(lesson: Lesson, model: catalogue.Model, values: dict[str, Any]) -> Any:
    """The lesson's result, or None while it is computed (which is shown) or where it failed (which is said)."""
    worker = session.the_worker()
    name = model.name if lesson.needs_model else None
    key = (lesson.key, name, *((each, _plain(value)) for each, value in sorted(values.items())))
    task = worker.task(key)
    if lesson.cost and model.name != catalogue.DEFAULT and task is None:
        if not st.button("Compute this with the model", key=f"compute-{lesson.key}"):
            st.caption(f"A large model may take a while: this costs {lesson.cost}.")
            return None
    elif lesson.needs_model:
        st.caption(f"Computed live, with {session.plain(model.title)}.")
    if task is None:
        task = _submit(lesson, name, key, values)
    if task is None:
        return None
    if task.active:
        st.fragment(_watch, run_every=REFRESH)(task)
        return None
    if task.state is State.DONE:
        return task.result
    st.error(session.plain(task.error or "It was cancelled."), icon=":material/error:")
    if st.button("Try again"):
        _submit(lesson, name, key, values)
        st.rerun()
    return None


def _submit(lesson: Lesson, name: str | None, key: tuple, values: dict[str, Any]) -> Task | None:
    try:
        return session.the_worker().compute(key, lambda m, report: lesson.compute(m, report, values), name)
    except StableDiffusionError as error:
        st.error(session.plain(str(error)), icon=":material/error:")
        return None


def _plain(value: Any) -> Any:
    return hashlib.sha256(value.tobytes()).hexdigest() if isinstance(value, Image.Image) else value


def _watch(task: Task) -> None:
    if not task.active:
        st.rerun()
    position = session.the_worker().position(task)
    note = f"Queued, position {position}" if position else task.note or "Computing"
    st.progress(min(1.0, max(0.0, task.note_fraction or 0.0)), text=session.plain(note))
    st.button("Stop", on_click=session.the_worker().cancel, args=(task,))


# --- What it shows


def _show(lesson: Lesson, shown: Sequence[blocks.Block]) -> None:
    for i, block in enumerate(shown):
        _block(lesson, block, f"{lesson.key}-block-{i}")


def _block(lesson: Lesson, block: blocks.Block, key: str) -> None:
    if isinstance(block, blocks.Say):
        st.markdown(block.text)
    elif isinstance(block, blocks.Formula):
        st.latex(block.latex)
    elif isinstance(block, blocks.Chart):
        st.altair_chart(block.chart.properties(description=block.alt), width="stretch")
    elif isinstance(block, blocks.Table):
        st.dataframe(list(block.rows), hide_index=True, width="content")
    elif isinstance(block, blocks.Strip):
        strip = st.container(horizontal=True, gap="small")
        for picture in block.pictures:
            cell = strip.container(width=block.width)
            cell.image(data_url(picture.image), width="stretch", alt=picture.alt)
            if picture.caption:
                cell.caption(picture.caption)
    elif isinstance(block, blocks.Drawing):
        if (chosen := clickable_drawing.draw(block.svg, block.alt, key)) in LESSONS:
            st.session_state[CLICKED] = chosen
            st.rerun()
    elif isinstance(block, blocks.Tour):
        label = f"Take the tour: {block.name}, {len(block.lessons)} lessons"
        st.button(label, key=key, icon=":material/tour:", on_click=_take, args=(block,))
    else:
        for j, (column, inner) in enumerate(zip(st.columns(len(block.columns)), block.columns, strict=True)):
            with column:
                for k, each in enumerate(inner):
                    _block(lesson, each, f"{key}-{j}-{k}")
