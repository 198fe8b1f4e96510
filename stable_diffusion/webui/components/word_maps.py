"""Where each word acts: the picture under the prompt's words, each of which lights up its place.

Python computes the maps of the chosen steps and level; word_maps.js shows them, so that words answer at once.
"""

import io
from pathlib import Path

import streamlit as st

from stable_diffusion.attention import PictureMaps
from stable_diffusion.pictures import heat
from stable_diffusion.service import word_maps
from stable_diffusion.service.jobs import Job, Picture
from stable_diffusion.service.preview import data_url, jpeg

_html, _css, _js = (Path(__file__).with_suffix(kind).read_text(encoding="utf-8") for kind in (".html", ".css", ".js"))
_words = st.components.v2.component("word_maps", html=_html, css=_css, js=_js)


def draw(job: Job, picture: Picture, maps: PictureMaps) -> None:
    """Draw a picture's words and their maps."""
    key = f"{job.id}-{job.pictures.index(picture)}"
    stage, level = word_maps.ALL, word_maps.EVERY
    if len(maps.stages) > 1:
        stage = st.select_slider(
            "Which steps",
            [word_maps.ALL, *range(len(maps.stages))],
            format_func=lambda number: word_maps.stage_title(maps, number),
            key=f"stage-{key}",
        )
    if len(maps.levels) > 1:
        level = st.select_slider(
            "Level of the U-Net",
            [word_maps.EVERY, *maps.levels],
            format_func=lambda name: word_maps.level_title(maps, name),
            help="On the way down the network sees ever larger parts of the picture as one, on the way up smaller ones "
            "again. All levels are the mean of both ways, without the middle.",
            key=f"level-{key}",
        )
    shown = word_maps.painted(job, picture)
    height, width = word_maps.shape(maps)
    _words(
        key=f"words-{key}",
        data={
            "picture": data_url(jpeg(shown)),
            "size": shown.size,
            "shape": [width, height],
            "words": word_maps.maps_of_words(maps, stage, level),
            "start": word_maps.telling(maps),
            "glow": heat.GLOW,
            "dimmed": heat.DIMMED,
            "strength": heat.STRENGTH,
        },
    )
    with st.container(horizontal=True, vertical_alignment="center"):
        st.download_button(
            "Download all words",
            data=lambda: _sheet(job, picture, maps),
            file_name=f"{job.id}-{picture.seed}.attention.png",
            mime="image/png",
            on_click="ignore",
            help="A sheet with each word's overlay, over all steps and levels",
        )
        st.download_button(
            "Download the numbers",
            data=maps.npz,
            file_name=f"{job.id}-{picture.seed}.attention.npz",
            mime="application/octet-stream",
            on_click="ignore",
            help="All maps as NumPy arrays (.npz)",
        )


def _sheet(job: Job, picture: Picture, maps: PictureMaps) -> bytes:
    file = io.BytesIO()
    maps.sheet(word_maps.painted(job, picture)).save(file, "PNG")
    return file.getvalue()
