"""A morph's frames as a film to play and as a strip of buttons; morph_player.js is the browser's side."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import streamlit as st

from stable_diffusion.compare.plan import Cell
from stable_diffusion.request import Request
from stable_diffusion.service.jobs import Morphing
from stable_diffusion.service.preview import approximate_jpeg, data_url, small_jpeg
from stable_diffusion.webui.components.details import one_line

KEY = "morph_player"
_html, _css, _js = (Path(__file__).with_suffix(kind).read_text(encoding="utf-8") for kind in (".html", ".css", ".js"))
_player = st.components.v2.component(KEY, html=_html, css=_css, js=_js)
SIDES = ((60, 512), (150, 384), (10_000, 192))  # up to so many frames, pixels of each
WHILE_PAINTING = 192  # pixels: all frames are sent again every second
MAX_WORDS = 60  # characters of a prompt


def draw(job: Morphing, fps: int, on_open: Callable[[int], None]) -> None:
    """Draw the player; `on_open` is told the index of a frame that was clicked."""

    def opened() -> None:
        told = (st.session_state.get(KEY) or {}).get("opened")
        index = told[0] if isinstance(told, (list, tuple)) and told else None
        if isinstance(index, int) and not isinstance(index, bool):
            on_open(index)

    _player(key=KEY, data=_data(job, fps), on_opened_change=opened)


def title(job: Morphing, index: int) -> str:
    """What a frame is: "Frame 3 of 8: a tent, 29 % of the way to a windmill"."""
    return f"Frame {index + 1} of {len(job.morph.cells)}: {_words(job.morph.cells[index].request)}"


def _words(request: Request) -> str:
    start = one_line(request.prompt, MAX_WORDS)
    if request.blend_prompt:
        return f"{start}, {request.blend_share:.0%} of the way to {one_line(request.blend_prompt, MAX_WORDS)}"
    if request.variation_seed is not None:
        share = f"{request.variation_strength:.0%} of the way"
        return f"{start}, {share} from seed {request.seed} to seed {request.variation_seed}"
    return f"{start}, seed {request.seed}"


def _data(job: Morphing, fps: int) -> dict[str, Any]:
    cells, order = job.morph.cells, job.morph.order
    side = WHILE_PAINTING if job.active else next(side for most, side in SIDES if len(order) <= most)
    places = {cell.digest: place for place, cell in enumerate(order)}
    return {
        "id": job.id,
        "fps": fps,
        "loop": job.morph.walk.loop,
        "active": job.active,
        "pictures": [_picture(job, cell, side) for cell in order],
        "frames": [{"picture": places[cell.digest], "name": title(job, i)} for i, cell in enumerate(cells)],
    }


def _picture(job: Morphing, cell: Cell, side: int) -> dict[str, str]:
    """A picture's state, and what there is to show of it."""
    picture = job.picture_of(cell)
    if cell.digest in job.problems:
        return {"state": "failed", "src": ""}
    if picture is not None and picture.there:
        return {"state": "finished", "src": data_url(small_jpeg(picture, side))}
    if picture is not None and job.active and picture is job.pictures[-1]:
        frame = picture.frames[-1] if picture.frames else None
        estimate = frame and (frame.decoded or frame.draft or approximate_jpeg(frame.denoised, job.latent_space))
        return {"state": "painting", "src": data_url(estimate) if estimate else ""}
    return {"state": "waits" if job.active else "missing", "src": ""}
