"""Streamlit's entry script: imported once for `app`, the server, and then run at every click to draw the page."""

from streamlit.runtime.scriptrunner import get_script_run_ctx

if get_script_run_ctx() is None:
    from stable_diffusion.webui.main import server

    app = server(__file__)
else:
    from stable_diffusion.webui.main import draw

    draw()
