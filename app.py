"""Streamlit's entry script: the server's guard, the navigation, the sidebar and the live panel.

`streamlit run app.py` imports this file once for `app`, the server; after that it runs it to draw the page, at every
click.
"""

from pathlib import Path

import streamlit as st
from streamlit.runtime.scriptrunner import get_script_run_ctx

WITH_FORM = ("Text to image", "Image to image", "Inpaint")  # beside these stands the live panel, else below


def main() -> None:
    """Draw the page."""
    from webui.components import handover, live, look, session, settings

    icon = Path(__file__).with_name("webui") / "icon.png"
    st.set_page_config(page_title="Stable Diffusion", page_icon=icon, layout="wide")
    page = st.navigation(
        [
            st.Page("webui/pages/text_to_image.py", title="Text to image", icon=":material/edit:", default=True),
            st.Page("webui/pages/image_to_image.py", title="Image to image", icon=":material/image:"),
            st.Page("webui/pages/inpaint.py", title="Inpaint", icon=":material/brush:"),
            st.Page("webui/pages/gallery.py", title="Gallery", icon=":material/photo_library:"),
            st.Page("webui/pages/picture_info.py", title="Picture info", icon=":material/info:"),
            st.Page("webui/pages/how_it_works.py", title="How it works", icon=":material/school:"),
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
    else:
        page.run()
        live.strip()


if get_script_run_ctx() is None:
    from webui.guard import guards

    app = st.App(__file__, middleware=guards(st.get_option("server.allowedHosts") or ["*"]))
else:
    main()
