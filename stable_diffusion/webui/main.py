"""The whole page: the server's middleware, the navigation, the sidebar and the live panel."""

from __future__ import annotations

import os
from pathlib import Path

import streamlit as st
from starlette.middleware import Middleware
from starlette.routing import Route

from stable_diffusion.places import packaged
from stable_diffusion.service.addresses import PASSWORD_VARIABLE
from stable_diffusion.service.api import routes as api_routes
from stable_diffusion.service.api.app import DOCKER
from stable_diffusion.service.api.links import is_link
from stable_diffusion.service.guard import guards
from stable_diffusion.service.password import PasswordGate
from stable_diffusion.webui.components import handover, job_queue, live, look, session, settings

PAGES = Path(__file__).with_name("pages")
WITH_FORM = ("Text to image", "Image to image", "Inpaint")  # these have the live panel, others a strip


def middleware() -> list[Middleware]:
    """What requests pass before they reach Streamlit: the check of hosts and origins, and the password if any."""
    hosts = st.get_option("server.allowedHosts")
    password = Middleware(PasswordGate, password=os.environ.get(PASSWORD_VARIABLE), is_open=is_link)
    return [*guards([*hosts, DOCKER] if hosts else ["*"]), password]


def routes() -> list[Route]:
    """What other programs ask, served beside the page."""
    return api_routes.routes()


def draw() -> None:
    """Draw the page."""
    st.set_page_config(page_title="Stable Diffusion", page_icon=packaged("webui", "icon.png"), layout="wide")
    page = st.navigation(
        [
            st.Page(PAGES / "text_to_image.py", title="Text to image", default=True),
            st.Page(PAGES / "image_to_image.py", title="Image to image"),
            st.Page(PAGES / "inpaint.py", title="Inpaint"),
            st.Page(PAGES / "upscale.py", title="Upscale"),
            st.Page(PAGES / "compare.py", title="Compare"),
            st.Page(PAGES / "morph.py", title="Morph"),
            st.Page(PAGES / "train.py", title="Train"),
            st.Page(PAGES / "models.py", title="Models"),
            st.Page(PAGES / "gallery.py", title="Gallery"),
            st.Page(PAGES / "picture_info.py", title="Picture info"),
            st.Page(PAGES / "how_it_works.py", title="How it works"),
        ],
        position="top",
    )
    look.draw()
    session.begin()
    handover.follow()
    settings.sidebar()
    handover.notes()
    if page.title in WITH_FORM:
        form, picture = st.columns(2, gap="large")
        with form:
            page.run()
        with picture, st.container(key="live"):
            live.panel()
            job_queue.draw()
    else:
        page.run()
        live.strip()
        job_queue.draw(shows_training=page.title == "Train")
