"""The page's selftest: whether this machine computes what it should, as a block to paste into an issue."""

import secrets
from typing import Any

import streamlit as st

from stable_diffusion.errors import StableDiffusionError
from stable_diffusion.service.jobs import Report, State, Task
from stable_diffusion.webui.components import session

REFRESH = 0.3  # seconds
KEY = "selftest"  # of the session's state: the last test's number


def draw() -> None:
    """Draw it."""
    with st.expander("About this machine", icon=":material/memory:"):
        st.caption(
            "Compares what this machine computes with plain arithmetic on its CPU, and three pictures with stored "
            "ones. It takes about half a minute, after what is queued. `stable-diffusion selftest` compares larger "
            "networks, and measures speed."
        )
        task = session.the_worker().task((KEY, st.session_state.get(KEY, "")))
        if task is not None and task.active:
            st.fragment(_watch, run_every=REFRESH)(task)
            return
        if task is not None:
            _result(task)
        st.button("Test this machine" if task is None else "Test again", on_click=_start)


def _start() -> None:
    number = st.session_state[KEY] = secrets.token_hex(6)
    try:
        session.the_worker().compute((KEY, number), _test)
    except StableDiffusionError as error:
        st.toast(session.plain(str(error)), icon=":material/error:")


def _test(model: Any, report: Report) -> Any:
    """Runs in the worker's thread, without a model."""
    from stable_diffusion.selftest import run, shapes

    return run.run(shapes.QUICK, report)


def _watch(task: Task) -> None:
    if not task.active:
        st.rerun()
    position = session.the_worker().position(task)
    note = f"Queued, position {position}" if position else task.note or "Testing"
    st.progress(min(1.0, max(0.0, task.note_fraction or 0.0)), text=session.plain(note))
    st.button("Stop", key="stop-selftest", on_click=session.the_worker().cancel, args=(task,))


def _result(task: Task) -> None:
    if task.state is not State.DONE:
        st.error(session.plain(task.error or "It was cancelled."), icon=":material/error:")
        return
    found = task.result
    if found.agrees:
        st.success("Everything agrees.", icon=":material/check_circle:")
    else:
        from stable_diffusion.selftest.report import MEANING

        st.error(session.plain(" ".join(MEANING.split())), icon=":material/error:")
    st.code(found.block(), language=None)
