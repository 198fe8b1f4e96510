"""The page "Compare": a request, up to three axes, and the grid that fills while it is painted."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable

import streamlit as st
from PIL import Image

from stable_diffusion.compare import axes, sheet
from stable_diffusion.compare import plan as planning
from stable_diffusion.compare.axes import Axis
from stable_diffusion.compare.plan import MANY, Cell, Plan
from stable_diffusion.errors import StableDiffusionError
from stable_diffusion.record import picture_files
from stable_diffusion.request import Request
from stable_diffusion.service.films import bytes_of
from stable_diffusion.service.jobs import Comparison
from stable_diffusion.service.words import in_plain_words
from stable_diffusion.webui.components import (
    compare_grid,
    details,
    field_guard,
    form,
    model_choice,
    series,
    session,
)

NOTHING = ""  # in place of an axis' name
FIRST = {"x": ("steps", "5-20 (+5)"), "y": (NOTHING, ""), "z": (NOTHING, "")}
WHERE = {"x": "Columns", "y": "Rows", "z": "Tables"}
SETTINGS, MATRIX = "Settings", "Prompt matrix"
REFRESH = 1.0  # seconds
CHECKED = 200  # cells that are checked while one types; of more only the number is said


def draw() -> None:
    """Draw the page."""
    left, right = st.columns([2, 3], gap="large")
    with left:
        form.prompts()
        _form()
    with right, st.container(key="live"):
        job = _job()
        if job is None:
            with st.container(border=True):
                st.markdown("**No grid yet**")
                st.caption("Choose what varies along columns, rows and tables, then press Paint grid.")
        else:
            st.fragment(_result, run_every=REFRESH if job.active else None)(job.id)


def _job() -> Comparison | None:
    """The grid that this tab shows: its own, or the one that was queued last."""
    return series.job_of("comparison_id", Comparison, session.the_worker().latest_comparison())


# --- The form


def _form() -> None:
    state = st.session_state
    kind = st.segmented_control("Vary", [SETTINGS, MATRIX], key="compare_kind", default=SETTINGS, required=True,
                                persist_state="session")  # fmt: skip
    if kind == MATRIX:
        st.caption(
            'The parts of the prompt: "a house|snow|night" paints the house alone, with snow, at night, and both.'
        )
    else:
        for letter in FIRST:
            _axis(letter)
    if state.get("input_picture") is not None:
        st.toggle("Start every cell from the input picture", key="compare_picture", persist_state="session")
    _total(kind or SETTINGS)
    field_guard.draw()
    job = _job()
    active = job is not None and job.active
    with st.container(horizontal=True):
        st.button(
            "Paint grid",
            type="primary",
            shortcut="Ctrl+Enter",
            on_click=_paint,
            args=(kind or SETTINGS,),
            width="stretch",
        )
        st.button("Stop", disabled=not active, on_click=series.stop, args=(job,), width="stretch",
                  help="Finished cells are kept, and the same grid goes on with the others")  # fmt: skip
    if problem := state.get("compare_problem"):
        st.error(session.plain(problem), icon=":material/error:")


def _axis(letter: str) -> None:
    """Draw what varies along an axis, and its values."""
    state = st.session_state
    names = [NOTHING, *sorted(axes.kinds(), key=lambda name: axes.kinds()[name].title.casefold())]
    for key, value in zip((f"axis_{letter}", f"values_{letter}"), FIRST[letter], strict=True):
        state.setdefault(key, value)
    one, other = st.columns([2, 3])
    one.selectbox(
        WHERE[letter],
        names,
        key=f"axis_{letter}",
        format_func=lambda name: axes.kinds()[name].title if name else "Nothing",
        on_change=_begin_axis,
        args=(letter,),
        persist_state="session",
    )
    kind = axes.kinds().get(state[f"axis_{letter}"])
    other.text_input(
        f"Values of the {WHERE[letter].lower()}",
        key=f"values_{letter}",
        disabled=kind is None,
        placeholder=kind.example if kind else "",
        help='A list: 5, 10, 20. Quotes keep "a, b" together. A range: 1-10 (+3) in steps of 3, 0-1 [5] in five. '
        "\\* stands for all that there are.",
        persist_state="session",
    )
    if kind is not None and kind.options is not None:
        options = list(kind.options())
        with st.container(horizontal=True, vertical_alignment="center", gap="small"):
            st.button("All", key=f"all_{letter}", type="tertiary", on_click=_all, args=(letter,), disabled=not options,
                      help="Put all of them into the field")  # fmt: skip
            listed = details.one_line(", ".join(options), 60) or "There are none yet"
            st.caption(session.plain(listed), width="content")


def _begin_axis(letter: str) -> None:
    """Suggest values for an axis that was just chosen."""
    kind = axes.kinds().get(st.session_state[f"axis_{letter}"])
    suggested = kind.example if kind and kind.options is None and ":" not in kind.example else ""
    st.session_state[f"values_{letter}"] = suggested


def _all(letter: str) -> None:
    options = axes.kinds()[st.session_state[f"axis_{letter}"]].options
    if options is not None:
        st.session_state[f"values_{letter}"] = ", ".join(f'"{each}"' if "," in each else each for each in options())


def _axes() -> list[Axis | None]:
    """The chosen axes. Raises InputError."""
    state = st.session_state
    chosen = [(axes.kinds().get(state[f"axis_{letter}"]), state[f"values_{letter}"]) for letter in FIRST]
    return [None if kind is None else axes.of_kind(kind, typed) for kind, typed in chosen]


def _request() -> Request:
    """The form's request, of one picture. Raises InputError."""
    picture = st.session_state.get("input_picture") if st.session_state.get("compare_picture") else None
    request = session.request_from_form(picture)
    return dataclasses.replace(request, n_images=1, combinations=False)


def _plan(kind: str) -> Plan:
    return planning.matrix(_request()) if kind == MATRIX else planning.plan(_request(), _axes())


def _total(kind: str) -> None:
    """Say how many pictures there will be, or what is wrong."""
    try:
        if kind == MATRIX:
            found = planning.matrix(_request())
            cells, loads = len(found.cells), found.n_loads
        else:
            counts = [len(axis.values) for axis in _axes() if axis is not None]
            cells, loads = 1, 1
            for count in counts:
                cells *= count
            if cells <= CHECKED:
                loads = _plan(kind).n_loads
    except (StableDiffusionError, OSError) as error:
        st.warning(session.plain(in_plain_words(error)), icon=":material/warning:")
        return
    words = f"{cells} picture{'s' * (cells != 1)}"
    if loads > 1:
        words += f" · {loads} models are loaded, one after the other"
    st.caption(words)
    if cells > MANY:
        st.checkbox(f"Paint all {cells} pictures", key="compare_many")


def _paint(kind: str) -> None:
    state = st.session_state
    state["compare_problem"] = ""
    worker = session.the_worker()
    try:
        field_guard.check()
        if problem := model_choice.why_not(session.chosen_model()):
            state["compare_problem"] = problem
            return
        before = _job()
        plan = _resumed(_plan(kind), kind, before)
        if len(plan.cells) > MANY and not state.get("compare_many"):
            state["compare_problem"] = f"{len(plan.cells)} pictures: tick the box if you want to paint all of them."
            return
        known = before.kept() if before is not None else {}
        if before is not None and before.active:
            worker.cancel(before)
        state["comparison_id"] = worker.compare(plan, known).id
        state["compare_open"] = None
    except (StableDiffusionError, OSError) as error:
        state["compare_problem"] = in_plain_words(error)


def _resumed(plan: Plan, kind: str, before: Comparison | None) -> Plan:
    """The plan with the seed of the grid before, if the form leaves it open and that is the same grid otherwise."""
    request = _request()
    if request.seed is not None or before is None:
        return plan
    request = dataclasses.replace(request, seed=before.plan.cells[0].request.seed)
    again = planning.matrix(request) if kind == MATRIX else planning.plan(request, _axes())
    mine = {cell.digest for cell in again.cells}
    unfinished = before.active or len(before.finished()) < len(before.plan.cells)
    return again if unfinished and mine & {cell.digest for cell in before.plan.cells} else plan


# --- The grid


def _result(job_id: str) -> None:
    job = series.followed(job_id, Comparison, "compare_watched")
    finished = job.finished()
    series.progress(job, len(finished), len(job.plan.cells), "cells", "Paint grid")
    compare_grid.draw(job, _open)
    _opened(job)
    if finished and not job.active:
        _downloads(job)


def _open(index: int) -> None:
    st.session_state["compare_open"] = index


def _opened(job: Comparison) -> None:
    """Draw the cell that was clicked, and how it was made."""
    index = st.session_state.get("compare_open")
    if not isinstance(index, int) or not 0 <= index < len(job.plan.cells):
        return
    cell = job.plan.cells[index]
    title = ", ".join(filter(None, (job.plan.label(axis, place) for axis, place in enumerate(cell.place))))
    instead = job.problems.get(cell.digest) or "This cell is not painted yet."
    series.opened(title, f"The cell with {title}", job.picture_of(cell), instead, _close)


def _close() -> None:
    st.session_state["compare_open"] = None


def _downloads(job: Comparison) -> None:
    with st.container(horizontal=True, gap="small"):
        st.download_button("Download the sheet", data=lambda: _sheet(job), file_name="grid.png", mime="image/png",
                           on_click="ignore", icon=":material/download:")  # fmt: skip
        st.download_button("Download the table", data=lambda: _table(job), file_name="grid.csv", mime="text/csv",
                           on_click="ignore", icon=":material/table:")  # fmt: skip


def _looks(job: Comparison) -> Callable[[Cell], Image.Image | None]:
    finished = job.finished()

    def look(cell: Cell) -> Image.Image | None:
        picture = finished.get(cell.digest)
        return None if picture is None else Image.open(io.BytesIO(bytes_of(picture)))

    return look


def _sheet(job: Comparison) -> bytes:
    finished = job.finished()
    first = next(finished[cell.digest] for cell in job.plan.cells if cell.digest in finished)
    said = picture_files.read_parameters(io.BytesIO(bytes_of(first)))
    return picture_files.encoded(sheet.draw(job.plan, _looks(job)), ".png", sheet.record(job.plan, said))


def _table(job: Comparison) -> str:
    finished = job.finished()
    rows = []
    for cell in job.plan.cells:
        picture = finished.get(cell.digest)
        said = None if picture is None else picture_files.read_parameters(io.BytesIO(bytes_of(picture)))
        if picture is not None and said is not None:
            rows.append((cell, picture.path.name if picture.path else "", said))
    return sheet.table(job.plan, rows)
