"""The page's entry script: imported once for `app`, the server, and then run at every click to draw the page."""

import streamlit as st
from streamlit.runtime.scriptrunner import get_script_run_ctx

from stable_diffusion.webui import main

if get_script_run_ctx(suppress_warning=True) is None:
    app = st.App(__file__, routes=main.routes(), middleware=main.middleware())  # Streamlit finds this by reading it
else:
    main.draw()
