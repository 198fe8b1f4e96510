"""Merging: two or three models of one family become a new one, in the worker's queue."""

from __future__ import annotations

import streamlit as st

from stable_diffusion import catalogue
from stable_diffusion.errors import StableDiffusionError
from stable_diffusion.model_io.merge import ADD_DIFFERENCE, MULTIPLIER, NAMES, WEIGHTED_SUM
from stable_diffusion.service.jobs import State
from stable_diffusion.service.merging import MAX_NAME, Merging
from stable_diffusion.service.words import in_plain_words
from stable_diffusion.webui.components import live, session

REFRESH = 0.4  # seconds
ROLES = {
    "A": "The model that is changed. What the others lack stays as it is here.",
    "B": "The model that is mixed in.",
    "C": "What is taken off B, usually the model that B was trained from: only what B has learnt is added.",
}
state = st.session_state


def draw() -> None:
    """Draw the form, and what comes of it."""
    st.subheader("Merge models", anchor=False)
    work: Merging | None = state.get("merge_work")
    if work is not None and work.task.state is State.DONE and state.get("merge_listed") != work.task.id:
        state["merge_listed"] = work.task.id
        session.refresh_lists()
    models = {each.name: each for each in session.listed_models() if each.present and not each.problem}
    if len(models) < 2:
        st.caption("This takes two models of one family. There is only one here: put others into models/.")
        return
    mode = st.segmented_control(
        "Method", list(NAMES), default=None if "merge_mode" in state else WEIGHTED_SUM, required=True,
        format_func=NAMES.__getitem__, key="merge_mode", persist_state="session",
        help="Weighted sum: a mixture of A and B. Add difference: A, and of B what it has more than C.",
    ) or WEIGHTED_SUM  # fmt: skip
    roles = [*ROLES][: 3 if mode == ADD_DIFFERENCE else 2]
    for column, role in zip(st.columns(len(roles)), roles, strict=True):
        _choice(column, role, [*models])
    weight = st.slider(
        "Weight of B" if mode == WEIGHTED_SUM else "Weight of the difference", 0.0, 1.0, MULTIPLIER, 0.05,
        key="merge_weight", persist_state="session",
    )  # fmt: skip
    formula = f"A × {1 - weight:.2f} + B × {weight:.2f}" if mode == WEIGHTED_SUM else f"A + (B − C) × {weight:.2f}"
    st.caption(formula)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        name = st.text_input(
            "Name of the new model", key="merge_name", max_chars=MAX_NAME, persist_state="session",
            help="The file's name in models/, without .safetensors.",
        )  # fmt: skip
        float16 = st.toggle(
            "Half precision (float16)", value=True, key="merge_float16", persist_state="session",
            help="Half the file; what most checkpoints have.",
        )  # fmt: skip
    chosen = [models[state[f"merge_{role}"]] for role in roles]
    busy = work is not None and work.task.active
    # No callback: it would be given what the page showed before the field that was just left.
    if st.button(
        "Merge", type="primary", key="merge_start", disabled=busy or not name.strip(),
        help="" if name.strip() else "Give the new model a name",
    ):  # fmt: skip
        _queue(chosen, name, weight, mode, float16)
        st.rerun()
    if problem := state.get("merge_problem"):
        st.error(session.plain(problem), icon=":material/error:")
    if work is not None:
        _work(work)


def _choice(column, role: str, names: list[str]) -> None:
    key = f"merge_{role}"
    if state.get(key) not in names:
        state[key] = names[min([*ROLES].index(role), len(names) - 1)]
    column.selectbox(
        role, names, key=key, help=ROLES[role], persist_state="session",
    )  # fmt: skip


def _queue(models: list[catalogue.Model], name: str, weight: float, mode: str, float16: bool) -> None:
    state["merge_problem"] = ""
    try:
        state["merge_work"] = Merging(session.the_worker(), models, name, weight, mode, float16)
    except StableDiffusionError as error:
        state["merge_problem"] = in_plain_words(error)


def _work(work: Merging) -> None:
    task = work.task
    if task.active:
        st.fragment(_watch, run_every=REFRESH)(work)
    elif task.state is State.FAILED:
        st.error(session.plain(task.error), icon=":material/error:")
    elif task.state is State.CANCELLED:
        st.info("Stopped. Nothing was written.", icon=":material/info:")
    else:
        st.success(
            session.plain(f"{work.name} is in the list of models, {live.duration(task.elapsed)}."),
            icon=":material/check:",
        )


def _watch(work: Merging) -> None:
    task = work.task
    if not task.active:
        st.rerun()
    position = session.the_worker().position(task)
    note = f"Queued, position {position}" if position else task.note or "Starting"
    st.progress(min(1.0, max(0.0, task.fraction)), text=session.plain(note))
    st.button("Stop", key="merge_stop", disabled=task.cancelling, on_click=session.the_worker().cancel, args=(task,))
