"""A grid's cells as tables with headings, each a button that opens it; compare_grid.js is the browser's side."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import streamlit as st

from stable_diffusion.service.jobs import Comparison
from stable_diffusion.service.preview import approximate_jpeg, data_url, small_jpeg

KEY = "compare_grid"
_css, _js = (Path(__file__).with_suffix(kind).read_text(encoding="utf-8") for kind in (".css", ".js"))
_grid = st.components.v2.component(KEY, css=_css, js=_js)
SIDE, SMALL_SIDE, LARGE = 192, 96, 60  # pixels of a cell's picture; smaller in grids of more cells than LARGE


def draw(job: Comparison, on_open: Callable[[int], None]) -> None:
    """Draw the cells; `on_open` is told the index of one that was clicked."""

    def opened() -> None:
        told = (st.session_state.get(KEY) or {}).get("opened")
        index = told[0] if isinstance(told, (list, tuple)) and told else None
        if isinstance(index, int) and not isinstance(index, bool):
            on_open(index)

    _grid(key=KEY, data=_data(job), on_opened_change=opened)


def _data(job: Comparison) -> dict[str, Any]:
    plan = job.plan
    nx, ny, nz = plan.shape
    side = SIDE if len(plan.cells) <= LARGE else SMALL_SIDE
    cells = [_cell(job, i, side) for i in range(len(plan.cells))]
    return {
        "id": job.id,
        "side": side,
        "columns": [plan.label(0, x) for x in range(nx)] if plan.axes[0] is not None else [],
        "tables": [
            {
                "title": plan.label(2, z),
                "rows": [
                    {"title": plan.label(1, y), "cells": cells[(z * ny + y) * nx : (z * ny + y + 1) * nx]}
                    for y in range(ny)
                ],
            }
            for z in range(nz)
        ],
    }


def _cell(job: Comparison, index: int, side: int) -> dict[str, Any]:
    cell = job.plan.cells[index]
    picture = job.picture_of(cell)
    name = ", ".join(filter(None, (job.plan.label(axis, place) for axis, place in enumerate(cell.place))))
    found = {"index": index, "name": name, "src": "", "state": "waits"}
    if cell.digest in job.problems:
        found["state"] = "failed"
    elif picture is not None and picture.there:
        found |= {"state": "finished", "src": data_url(small_jpeg(picture, side))}
    elif picture is not None and job.active and picture is job.pictures[-1]:
        found["state"] = "painting"
        frame = picture.frames[-1] if picture.frames else None
        estimate = frame and (frame.decoded or frame.draft or approximate_jpeg(frame.denoised, job.latent_space))
        found["src"] = data_url(estimate) if estimate else ""
    elif not job.active:
        found["state"] = "missing"
    return found
